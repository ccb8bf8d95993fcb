"""The losses of the game against a critic, by hand: scores, slopes, what is usual, features, weights."""

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.generators.adversary import Adversary, GeneratorOutput, Hinge, LeastSquares, NonSaturating, Relativistic
from mmjax.generators.critics import CriticOutput, PatchCritic
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw

RULES = PRESETS["data"]
CRITIC = PatchCritic(widths=(4, 8))
ADVERSARY = Adversary(critic=CRITIC)
PLAIN = chz.replace(ADVERSARY, augment=False)
TRUE, MADE = np.array([0.3, -2.0, 1.5]), np.array([-0.4, 0.1, 2.5])


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize(
    ("loss", "generator", "critic"),
    [
        (Relativistic(), softplus(TRUE - MADE), softplus(MADE - TRUE)),
        (NonSaturating(), softplus(-MADE), softplus(-TRUE) + softplus(MADE)),
        (Hinge(), -MADE, np.maximum(0, 1 - TRUE) + np.maximum(0, 1 + MADE)),
        (LeastSquares(), (1 - MADE) ** 2, (1 - TRUE) ** 2 + MADE**2),
    ],
)
def test_losses_by_their_formulas(loss, generator, critic):
    np.testing.assert_allclose(loss.generator_loss(jnp.asarray(TRUE), jnp.asarray(MADE)), generator, rtol=1e-5)
    np.testing.assert_allclose(loss.critic_loss(jnp.asarray(TRUE), jnp.asarray(MADE)), critic, rtol=1e-5)


class Tilt(nnx.Module):
    """A critic whose score is a weighted sum of all numbers, so that its slope is known."""

    def __init__(self, rngs):
        self.weights = nnx.Param(jax.random.normal(rngs.params(), (3, 2, 1)))

    def __call__(self, x, condition):
        parts = x * self.weights[...]
        return CriticOutput((parts.sum((2, 3)) * 3,), (parts,))


WEIGHTS = (1.0, 0.0, 2.0)


def attempt_of(true, fake):
    def distance(fake):
        return jnp.square(fake - true).mean((1, 2, 3))

    return GeneratorOutput(true, fake, distance, jnp.asarray([0.5, 0.0, 0.25]), jnp.asarray(WEIGHTS), {})


@pytest.fixture(scope="module")
def played():
    """Two grids of three examples, and a critic that weighs them."""
    rng = np.random.default_rng(0)
    true, fake = (jnp.asarray(rng.normal(size=(3, 3, 2, 1)), jnp.float32) for _ in range(2))
    critic = Tilt(nnx.Rngs(0))
    return true, fake, critic, np.asarray(critic.weights[...], np.float64)


def losses(adversary, critic, true, fake, step=None, score_ema=None):
    """Both losses and the metrics of an attempt at three examples, of which the second has no truth."""
    settings = Settings(width=4, rules=RULES)
    module = draw(lambda rngs: adversary.build(1, settings, rngs))
    module.critic = critic
    if score_ema is not None:
        module.score_ema[...] = jnp.asarray(score_ema)

    @jax.jit
    def play(module, true, fake):
        return module.losses(attempt_of(true, fake), jnp.zeros((3, 4)), None, step)

    return play(module, true, fake)


def expected(scores):
    return (np.asarray(WEIGHTS) * scores).sum() / np.sum(WEIGHTS)


def test_the_critics_loss_by_hand(played):
    """Scores, slopes, and the distance from what is usual, each example by its weight."""
    true, fake, critic, tilt = played
    on_true, on_made = ((np.asarray(x, np.float64) * tilt).sum((2, 3)) * 3 for x in (true, fake))
    scores = softplus(on_made - on_true).mean(1)
    slopes = np.full(3, (tilt**2).sum())  # the mean over three rows of three times a weighted sum
    config = Adversary(critic=CRITIC, augment=False, gradient_penalty=0.7, lecam=0.3)
    _, loss, metrics = losses(config, critic, true, fake, score_ema=(0.02, -0.01))
    far = (on_true.mean(1) + 1) ** 2 + (on_made.mean(1) - 2) ** 2
    follow = (2 - on_true.mean(1)) ** 2 + (-1 - on_made.mean(1)) ** 2
    wanted = scores + 0.7 * slopes + 0.3 * far + follow
    np.testing.assert_allclose(loss.value(), expected(wanted), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_penalty"].value(), slopes[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["true_score"].value(), expected(on_true.mean(1)), rtol=1e-5)


def critic_gradients(config, played, score_ema=None):
    """Of the critic's loss: by the critic's weights, and by what is usual."""
    true, fake, _, tilt = played

    def loss(weights, score_ema):
        critic = Tilt(nnx.Rngs(0))
        critic.weights[...] = weights
        return losses(config, critic, true, fake, score_ema=score_ema)[1].value()

    return jax.grad(loss, argnums=(0, 1) if score_ema else 0)(
        jnp.asarray(tilt, jnp.float32), score_ema and jnp.asarray(score_ema)
    )


def test_the_penalty_is_differentiated(played):
    """The slope of a weighted sum is its weights w: penalty / 2 * 2 |w|^2 has the gradient 2 penalty w."""
    with_penalty, without = (
        critic_gradients(chz.replace(PLAIN, gradient_penalty=weight), played) for weight in (0.7, 0.0)
    )
    np.testing.assert_allclose(with_penalty - without, 2 * 0.7 * played[3], rtol=1e-4, atol=1e-5)


def test_usual_scores_follow_and_hold_the_critic(played):
    """What is usual is drawn to the mean scores, at any weight of LeCam; scores to what is usual of the other kind."""
    true, fake, _, tilt = played
    config = chz.replace(PLAIN, gradient_penalty=0.0, lecam=0.3)
    weights, score_ema = critic_gradients(config, played, score_ema=(0.02, -0.01))
    scores = [(np.asarray(x, np.float64) * tilt).sum((1, 2, 3)) for x in (true, fake)]
    np.testing.assert_allclose(score_ema, [200 * expected(2 - scores[0]), 200 * expected(-1 - scores[1])], rtol=1e-4)
    pulls = [scores[0] + 1, scores[1] - 2]
    share = np.asarray(WEIGHTS) / np.sum(WEIGHTS)
    by_hand = sum(
        0.3 * 2 * np.einsum("b,b...->...", share * pull, np.asarray(x))
        for pull, x in zip(pulls, (true, fake), strict=True)
    )
    without = critic_gradients(chz.replace(config, lecam=0.0), played)
    np.testing.assert_allclose(weights - without, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("step", "counts"), [(None, 1), (9, 0), (10, 1)])
def test_the_generators_loss_by_hand(played, step, counts):
    true, fake, critic, tilt = played
    on_true, on_made = ((np.asarray(x, np.float64) * tilt).sum((2, 3)) * 3 for x in (true, fake))
    own = np.square(np.asarray(fake - true)).mean((1, 2, 3)) + np.array((0.5, 0, 0.25))
    matched = np.abs(np.asarray(true - fake) * tilt).mean((1, 2, 3))
    config = Adversary(critic=CRITIC, augment=False, weight=0.2, feature_matching=0.5, warmup=10)
    step = None if step is None else jnp.int32(step)
    loss, _, _ = losses(config, critic, true, fake, step=step)
    wanted = own + counts * (0.2 * softplus(on_true - on_made).mean(1) + 0.5 * matched)
    np.testing.assert_allclose(loss.value(), expected(wanted), rtol=1e-5)


def test_an_adaptive_weight_makes_both_slopes_alike(played):
    """The gradients of distance and adversarial loss by what was made have the same norm then."""
    true, fake, critic, _ = played
    config = chz.replace(PLAIN, adaptive=True, weight=1.0)

    def slopes(fake, config):
        return jax.grad(lambda fake: losses(config, critic, true, fake)[0].value())(fake)

    near = 2 * np.asarray(fake - true) * np.asarray(WEIGHTS)[:, None, None, None] / 6 / sum(WEIGHTS)
    far = slopes(fake, config) - near
    np.testing.assert_allclose(jnp.linalg.norm(far), jnp.linalg.norm(near), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weight": -1.0}, "weight=-1.0 must not be negative"), ({"warmup": -1}, "warmup=-1 must not be negative")],
)
def test_wrong_values(change, message):
    with pytest.raises(ValueError, match=message):
        chz.replace(ADVERSARY, **change)
    with pytest.raises(ValueError, match="positive number of channels"):
        PatchCritic(widths=())
