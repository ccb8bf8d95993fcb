"""The game against a critic: its losses by hand, whose gradient is whose, one forward pass, every mesh, every dtype."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.encoders import Recurrent, TextTransformer, ViT
from mmjax.fusion import Concat, SingleStream
from mmjax.generators import Gan, VaeGan, VqGan
from mmjax.generators.adversary import Adversary, GeneratorOutput, Hinge, LeastSquares, NonSaturating, Relativistic
from mmjax.generators.augmentation import diff_augment
from mmjax.generators.codes import Codebook
from mmjax.generators.critics import CriticOutput, PatchCritic
from mmjax.generators.perceptual import Perceptual
from mmjax.hardware.flops import count_flops, step_flops
from mmjax.layers.settings import Settings
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, build_critics, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.training.state import init_state
from mmjax.training.step import compute_gradients, train_step
from mmjax.training.train_program import TrainProgram
from mmjax.types import Fused, Tokens
from tests.golden import check_collectives
from tests.reference import convolve, draw, linear, wide
from tests.small import FEATURES, make_batch, put

RULES = PRESETS["data"]
CRITIC = PatchCritic(widths=(4, 8))
ADVERSARY = Adversary(critic=CRITIC)
PLAIN = chz.replace(ADVERSARY, augment=False)
TRUE, MADE = np.array([0.3, -2.0, 1.5]), np.array([-0.4, 0.1, 2.5])
MODEL = Model(
    width=16,
    dtype="float32",
    encoders={"text": TextTransformer(depth=1, heads=2)},
    fusion=SingleStream(depth=1, heads=2),
    outputs={
        "image": Gan(target="image", noise=3, depth=1, heads=2, widths=(4, 8), adversary=ADVERSARY),
        "speech": VaeGan(
            target="speech",
            latent=2,
            widths=(4,),
            adversary=chz.replace(ADVERSARY, adaptive=True, feature_matching=0.5, lecam=0.1, loss=Hinge()),
            perceptual=Perceptual(stem=2, widths=(4,), depths=(1,), kernel=3),
        ),
        "codes": VqGan(
            target="image",
            quantizer=Codebook(size=8, width=4),
            widths=(4,),
            adversary=chz.replace(ADVERSARY, critic=chz.replace(CRITIC, conditional=False), loss=NonSaturating()),
        ),
    },
)


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


def test_a_gan_counts_its_squared_error_as_it_is_told():
    config = chz.replace(MODEL.outputs["image"], reconstruction=0.3)
    gan = draw(lambda rngs: config.build(FEATURES, Settings(width=16, rules=RULES), rngs))
    values, mask, pooled = jax.device_put(
        (np.ones((8, 2, 16), np.float32), np.ones((8, 2), bool), np.ones((8, 16), np.float32)), RULES.spec("batch")
    )
    fused = Fused(Tokens(values, mask), pooled, {})
    loss, metrics = jax.jit(lambda batch: gan.loss(fused, batch, jax.random.key(0), None))(put(make_batch(), RULES))
    np.testing.assert_allclose(loss.value(), 0.3 * metrics["squared_error"].value(), rtol=1e-5)


def test_a_patch_critic_in_numpy():
    settings = Settings(width=16, rules=RULES)
    critic = draw(lambda rngs: CRITIC.build(1, settings, rngs))
    rng = np.random.default_rng(1)
    x, condition = rng.normal(size=(2, 8, 6, 1)), rng.normal(size=(2, 16))

    def leak(x):
        return np.where(x > 0, x, 0.2 * x)

    def conv(layer, x):
        return convolve(x, wide(layer.kernel), layer.stride[0]) + wide(layer.bias)

    def halve(layer, x):
        x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        corners = [x[:, row::2, column::2] for row in range(2) for column in range(2)]
        return linear(layer.linear, np.concatenate(corners, -1))

    y = conv(critic.stem, x)
    for level, block in zip(critic.halve, critic.blocks, strict=True):
        y = halve(level, leak(y))
        y = y + conv(block.second, leak(conv(block.first, leak(y))))
    y = leak(y)
    scores = conv(critic.score, y)[..., 0]
    scores += np.einsum("bhwc,bc->bhw", y, linear(critic.project, condition)) / np.sqrt(8)
    run = jax.jit(lambda critic, *given: critic(*given))
    given = jax.device_put((x.astype(np.float32), condition.astype(np.float32)), RULES.spec("batch"))
    verdict = run(critic, *given)
    np.testing.assert_allclose(verdict.scores[0], scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jax.jit(CriticOutput.mean)(verdict), scores.mean((1, 2)), rtol=1e-3, atol=1e-4)
    assert [features.shape for features in verdict.features] == [(2, 4, 3, 4), (2, 2, 2, 8)]


def test_augmentation_moves_cuts_and_lets_gradients_pass():
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, size=(64, 16, 16, 3)), jnp.float32)
    run = jax.jit(diff_augment)
    seen = run(x, jax.random.key(0))
    np.testing.assert_array_equal(seen, run(x, jax.random.key(0)))
    assert np.abs(seen - run(x, jax.random.key(1))).max() > 0.1
    gradient = np.asarray(jax.jit(jax.grad(lambda x: diff_augment(x, jax.random.key(0)).sum()))(x))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    # Light keeps which of two pictures is which: an affine map of each, so what is constant stays so where it is seen.
    flat = np.asarray(run(jnp.full((64, 16, 16, 3), 0.7), jax.random.key(2)))
    for picture in flat:
        values = np.unique(np.round(picture[np.abs(picture).sum(-1) > 0], 4))
        assert len(values) <= 1
    # Whole rows and columns are zero where a picture was moved away from that side.
    for axes in ((2, 3), (1, 3)):
        sides = (flat == 0).all(axes)
        assert sides[:, 0].any()
        assert sides[:, -1].any()
    # A box of half of each side is cut, and a shift of up to two places leaves zeros besides.
    zeros = (flat == 0).all(-1).mean((1, 2))
    assert 1 / 16 <= zeros.min() <= zeros.mean() <= 0.5
    assert len(np.unique(zeros)) > 5


@functools.cache
def start(name):
    shape, rules = MESHES[name]
    with jax.set_mesh(shape.build()):
        model = draw(lambda rngs: MODEL.build(FEATURES, rules=rules, rngs=rngs), scale=0.2)
        critics = draw(lambda rngs: MODEL.build_critics(FEATURES, rules=rules, rngs=rngs), seed=1, scale=0.2)
    return model, critics


MESHES = {
    "one": (MeshShape(data=1), PRESETS["data"]),
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}


@functools.cache
def both(name):
    """Losses, metrics and gradients of both players on the mesh of that name."""
    shape, rules = MESHES[name]
    players = start(name)
    with jax.set_mesh(shape.build()):
        compute = jax.jit(functools.partial(compute_gradients, rules=rules, parts=1))
        given = (players, put(make_batch(presence=0.8), rules), jax.random.key(7))
        compiled = compute.lower(*given, step=jnp.int32(3)).compile()
        return *compiled(*given, step=jnp.int32(3)), compiled.as_text()


def vector(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one"])
def test_every_mesh_computes_the_gradients_of_both(name):
    losses, metrics, gradients, _ = both("one")
    other_losses, other_metrics, other_gradients, program = both(name)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert np.linalg.norm(vector(ours)) > 0
        assert np.linalg.norm(vector(theirs) - vector(ours)) < 1e-5 * np.linalg.norm(vector(ours))
    for metric, average in metrics.items():
        np.testing.assert_allclose(
            jax.tree.leaves(other_metrics[metric]), jax.tree.leaves(average), rtol=1e-4, atol=1e-5, err_msg=metric
        )
    check_collectives(f"adversaries_{name}", program)


def test_each_players_gradient_is_of_its_own_loss():
    """As two separate backward passes with the other player held still give them."""
    model, critics = start("one")
    batch, key = put(make_batch(presence=0.8), RULES), jax.random.key(7)
    _, _, (of_model, of_critics), _ = both("one")

    @jax.jit
    def apart(model, critics):
        def loss(model, critics, index):
            return model.adversarial_loss(critics, batch, key, None, jnp.int32(3))[index]

        return jax.grad(loss)(model, critics, 0), jax.grad(loss, 1)(model, critics, 1)

    for ours, theirs in zip((of_model, of_critics), apart(model, critics), strict=True):
        np.testing.assert_allclose(vector(ours), vector(theirs), rtol=1e-4, atol=1e-6)
    judges = [name for name, _ in named_leaves(model) if "/judge/" in name]
    assert judges
    for name, gradient in named_leaves(of_model):
        if "/judge/" in name:
            assert not np.any(gradient), name


def test_one_forward_pass_serves_both():
    """Convolutions of the step of both are no more than those of each by itself less those of making it."""
    model, critics = start("one")
    batch, key = put(make_batch(), RULES), jax.random.key(7)

    def convolutions(function):
        program = jax.jit(function).lower(model, critics).compile().as_text()
        return len(re.findall(r" convolution\(", program)) + len(re.findall(r"__ynn_|onednn_conv", program))

    def loss(model, critics, parts):
        losses = model.adversarial_loss(critics, batch, key, None, jnp.int32(3))
        return sum(losses[index] for index in parts)

    together = convolutions(lambda m, c: jax.grad(loss, (0, 1))(m, c, (0, 1)))
    forward = convolutions(lambda m, c: loss(m, c, (0, 1)))
    apart = [
        convolutions(lambda m, c: jax.grad(loss)(m, c, (0,))),
        convolutions(lambda m, c: jax.grad(loss, 1)(m, c, (1,))),
    ]
    assert 0 < forward < together <= sum(apart) - forward // 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_players_learn_and_nothing_learns_when_one_is_not_finite(dtype):
    config = chz.replace(MODEL, dtype=dtype, fusion=Concat(), outputs={"image": MODEL.outputs["image"]})
    optimizer, critic_optimizer = optax.adam(1e-3), optax.adam(1e-3)

    @jax.jit
    def begin(key):
        model, critics = (make(key, config, FEATURES, RULES) for make in (build_model, build_critics))
        return init_state(model, optimizer, True, critics, critic_optimizer)

    step = jax.jit(
        functools.partial(
            train_step, optimizer=optimizer, critic_optimizer=critic_optimizer, rules=RULES, accumulate=2, ema=0.5
        ),
    )
    state, batch = begin(jax.random.key(0)), put(make_batch(), RULES)
    after, metrics = step(state, batch, jax.random.key(1))
    for player in ("model", "critics"):
        before, now = vector(getattr(state, player)), vector(getattr(after, player))
        assert np.isfinite(now).all()
        assert np.abs(now - before).max() > 0
    for (name, old), (_, new) in zip(named_leaves(state), named_leaves(after), strict=True):
        assert jax.typeof(new) == jax.typeof(old), name
    assert float(metrics["critic_gradient_norm"].value()) > 0
    assert metrics["image/true_score"].total.dtype == jnp.float32
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, after.critics)
    skipped, metrics = step(dataclasses.replace(after, critics=broken), batch, jax.random.key(1))
    assert int(skipped.skipped) == 1
    np.testing.assert_array_equal(vector(skipped.model), vector(after.model))
    np.testing.assert_array_equal(vector(skipped.critic_opt_state), vector(after.critic_opt_state))


def test_no_key_is_used_by_both(monkeypatch):
    """Neither one that parameters are drawn from nor one that such keys are made from."""
    config = chz.replace(MODEL, outputs={"image": MODEL.outputs["image"]})
    found = []

    def note(key):
        jax.debug.callback(lambda data: found.append(tuple(data.tolist())), jax.random.key_data(key))
        return key

    draw_key, begin = nnx.RngStream.__call__, nnx.Rngs.__init__
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda stream: note(draw_key(stream)))
    monkeypatch.setattr(nnx.Rngs, "__init__", lambda rngs, key: begin(rngs, note(key)))

    def keys_of(make):
        found.clear()

        @jax.jit
        def only_keys(key):
            make(key, config, FEATURES, RULES)

        only_keys(jax.random.key(0))
        jax.effects_barrier()
        return set(found)

    of_model, of_critics = keys_of(build_model), keys_of(build_critics)
    assert len(of_model) > 20
    assert len(of_critics) > 10
    assert not of_model & of_critics


@pytest.mark.parametrize("kind", [VaeGan, VqGan])
def test_a_critics_condition_does_not_hold_what_it_judges(kind):
    """Also where the output itself does not read the summary."""
    change = {"conditional": False, "latent": 2} if kind is VaeGan else {}
    output = kind(target="image", widths=(4,), adversary=ADVERSARY, **change)
    encoders = {"image": ViT(patch=4, depth=1, heads=2), "text": Recurrent()}
    config = chz.replace(MODEL, encoders=encoders, fusion=Concat(), outputs={"image": output})
    model = draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))

    class Spy:
        def losses(self, output, condition, key, step):
            self.condition = condition
            return *output.loss()[:1] * 2, {}

    @jax.jit
    def condition(batch):
        spy = Spy()
        model.adversarial_loss({"image": spy}, batch)
        return spy.condition

    first, second = make_batch(seed=0), make_batch(seed=1)
    seen = [
        condition(put(dataclasses.replace(first, values=first.values | {name: second.values[name]}), RULES))
        for name in ("song", "image", "text")
    ]
    np.testing.assert_array_equal(seen[1], seen[0])
    assert np.abs(np.asarray(seen[2]) - seen[0]).max() > 0


@pytest.mark.parametrize(("penalty", "passes"), [(0.0, 2), (1.0, 6)])
def test_a_steps_flops_count_the_critics(penalty, passes):
    """Three times its passes over true and made examples, and over both and back again where slopes are penalised."""
    output = chz.replace(MODEL.outputs["image"], adversary=chz.replace(PLAIN, gradient_penalty=penalty))
    config = chz.replace(MODEL, outputs={"image": output})
    key, batch = jax.random.key(0), put(make_batch(), RULES)
    model, critics = (
        jax.eval_shape(functools.partial(make, model=config, features=FEATURES, rules=RULES), key)
        for make in (build_model, build_critics)
    )
    program = SimpleNamespace(abstract_state=SimpleNamespace(model=model, critics=critics), batch_shapes=lambda: batch)
    x, condition = batch.values["image"], jnp.zeros((8, 16))
    once = count_flops(lambda critic, x: critic(x, condition), critics["image"].critic, x)
    assert once > 0
    added = TrainProgram.model_flops.func(program) - step_flops(model, batch)
    assert added == pytest.approx(3 * passes * once, rel=0.05)


def test_an_evaluation_needs_no_critic():
    model, _ = start("one")
    loss, metrics = jax.jit(lambda model, batch: model.loss(batch))(model, put(make_batch(), RULES))
    assert np.isfinite(float(loss))
    assert "image/squared_error" in metrics
    assert not any("score" in name for name in metrics)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"weight": -1.0}, "weight=-1.0 must not be negative"), ({"warmup": -1}, "warmup=-1 must not be negative")],
)
def test_wrong_values(change, message):
    with pytest.raises(ValueError, match=message):
        chz.replace(ADVERSARY, **change)
    with pytest.raises(ValueError, match="positive number of channels"):
        PatchCritic(widths=())
