"""Adversarial training: what a generator makes, a critic's game against it, and the losses of both."""

import abc
import dataclasses
from collections.abc import Callable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.augmentation import augment
from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.critics import Critic, CriticOutput, PatchCritic
from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.linear import make_parameter
from mmjax.layers.output import Output
from mmjax.layers.settings import Settings
from mmjax.types import Average, Feature, Metrics

# Losses of the generator and the critic by score: (of true examples, of made ones) -> the loss.
Scores = Float[Array, "B ..."]


@dataclasses.dataclass(frozen=True)
class GeneratorOutput:
    """What a generator made of a batch, before any critic has seen it, beside what is true.

    `distance(fake)` is each example's loss from it, a mean over its numbers, and `extra_loss` each example's other
    loss; the examples weigh `weights` in the loss, 0 where there is no truth.
    """

    true: Float[Array, "B ..."]
    fake: Float[Array, "B ..."]
    distance: Callable[[Float[Array, "B ..."]], Float[Array, "B"]]
    extra_loss: Float[Array, "B"]
    weights: Float[Array, "B"]
    metrics: Metrics

    def loss(self) -> tuple[Average, Metrics]:
        """The loss without a critic."""
        loss = Average.of(self.distance(self.fake) + self.extra_loss, self.weights)
        return loss, self.metrics


@chz.chz
class AdversarialLoss(abc.ABC):
    """What scores cost the two players."""

    @abc.abstractmethod
    def generator(self, true: Scores, fake: Scores) -> Scores:
        """What the generator loses."""

    @abc.abstractmethod
    def critic(self, true: Scores, fake: Scores) -> Scores:
        """What the critic loses."""


@chz.chz
class Relativistic(AdversarialLoss):
    """Pairs: softplus(true - made) against softplus(made - true) (Jolicoeur-Martineau 2019; Huang et al. 2024)."""

    def generator(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(true - fake)

    def critic(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(fake - true)


@chz.chz
class NonSaturating(AdversarialLoss):
    """softplus(-made) against softplus(-true) + softplus(made) (Goodfellow et al. 2014, section 3)."""

    def generator(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(-fake)

    def critic(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(-true) + jax.nn.softplus(fake)


@chz.chz
class Hinge(AdversarialLoss):
    """-made against max(0, 1 - true) + max(0, 1 + made) (Lim & Ye 2017)."""

    def generator(self, true: Scores, fake: Scores) -> Scores:
        return -fake

    def critic(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.relu(1 - true) + jax.nn.relu(1 + fake)


@chz.chz
class LeastSquares(AdversarialLoss):
    """(1 - made)^2 against (1 - true)^2 + made^2 (Mao et al. 2017)."""

    def generator(self, true: Scores, fake: Scores) -> Scores:
        return jnp.square(1 - fake)

    def critic(self, true: Scores, fake: Scores) -> Scores:
        return jnp.square(1 - true) + jnp.square(fake)


@chz.chz
class Adversary:
    """A critic and the terms of its game against a generator.

    The generator loses weight * (its adversarial loss) + matching * |features of true - of made| more. The critic loses
    its adversarial loss
    + penalty / 2 * (|d score / d true|^2 + |d score / d made|^2) (R1 and R2, Mescheder et al. 2018)
    + lecam * ((score of true - usual score of made)^2 + the same the other way round) (LeCam, Tseng et al. 2021).
    """

    loss: AdversarialLoss = chz.field(default=Relativistic(), doc="what scores cost")
    critic: Critic = chz.field(default=PatchCritic(), doc="the network")
    weight: float = chz.field(default=1.0, doc="of the adversarial loss in the generator's")
    adaptive: bool = chz.field(
        default=False,
        doc="weigh by |d distance / d made| / |d adversarial loss / d made| too (after Esser et al. 2021)",
    )
    matching: float = chz.field(default=0.0, doc="weight of the mean absolute difference of the critic's features")
    warmup: int = chz.field(default=0, doc="steps that the critic trains before the generator hears of it")
    penalty: float = chz.field(default=1.0, doc="of squared slopes of the score")
    lecam: float = chz.field(default=0.0, doc="of scores' distance from the usual one of the other kind")
    augment: bool = chz.field(default=True, doc="whether the critic sees everything in changed light, moved and cut")

    @chz.validate
    def _possible(self) -> None:
        for name in ("weight", "matching", "warmup", "penalty", "lecam"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> "AdversaryModule":
        """The critic for grids of so many channels, with what else is learned by it."""
        return AdversaryModule(self, channels, settings, rngs)


class AdversaryModule(nnx.Module):
    """See `Adversary`. Its parameters are the critic's side; scores, losses and penalties are in float32."""

    def __init__(self, config: Adversary, channels: int, settings: Settings, rngs: nnx.Rngs):
        self.critic = config.critic.build(channels, settings, rngs)
        zeros = jax.nn.initializers.zeros
        # Usual scores of true and of made examples, in hundreds, which an optimizer's small steps move fast enough.
        self.score_ema = make_parameter(zeros, (2,), (None,), rules=settings.rules, rngs=rngs) if config.lecam else None
        self.config = config

    def losses(
        self,
        output: GeneratorOutput,
        condition: Float[Array, "B D"],
        key: jax.Array | None,
        step: Int[Array, ""] | None,
    ) -> tuple[Average, Average, Metrics]:
        """The generator's loss, to which nothing in this module is a parameter; the critic's, to which only it is.

        So the gradient of their sum holds both players', and one forward pass of each network serves both.
        """
        config, weights = self.config, output.weights
        condition = jax.lax.stop_gradient(condition)
        true, fake = output.true, output.fake
        show = _showing(key if config.augment else None)
        frozen = jax.lax.stop_gradient(self)

        loss, metrics = output.loss()
        real = frozen.critic(show(true, 0), condition)
        verdict = frozen.critic(show(fake, 1), condition)
        rewarded = _each(config.loss.generator, real, verdict) * self._weight(output, real, condition, show)
        if config.matching:
            rewarded = rewarded + config.matching * _apart(real, verdict)
        counts = 1.0 if step is None else (step >= config.warmup).astype(jnp.float32)
        loss = Average(loss.totals + counts * Average.of(rewarded, weights).totals, loss.weights)

        costs, details = self._loss(show(true, 0), show(jax.lax.stop_gradient(fake), 1), condition)
        critic_loss = Average.of(costs, weights)
        metrics = metrics | {name: Average.of(value, weights) for name, value in details.items()}
        return loss, critic_loss, {**metrics, "critic": critic_loss}

    def _loss(self, true: Array, fake: Array, condition: Array) -> tuple[Float[Array, "B"], dict[str, Array]]:
        """What the critic loses by each example, and what is worth watching."""
        config = self.config
        on_true, on_made = self.critic(true, condition), self.critic(fake, condition)
        loss = _each(config.loss.critic, on_true, on_made)
        details = {"true_score": on_true.mean(), "made_score": on_made.mean()}
        if config.penalty:
            details["slope"] = (self._gradient_penalty(true, condition) + self._gradient_penalty(fake, condition)) / 2
            loss = loss + config.penalty * details["slope"]
        if self.score_ema is not None:
            score_ema = 100 * self.score_ema[...]
            scores = jnp.stack([on_true.mean(), on_made.mean()], 1)
            far = jnp.square(scores - jax.lax.stop_gradient(score_ema)[::-1])
            # The usual scores are learned as what is nearest to all scores, a running mean without a state of its own.
            follow = jnp.square(score_ema - jax.lax.stop_gradient(scores))
            loss = loss + (config.lecam * far + follow).sum(1)
        return loss, details

    def _gradient_penalty(self, x: Array, condition: Array) -> Float[Array, "B"]:
        """|d score / d x|^2."""
        slope = jax.grad(lambda x: self.critic(x, condition).mean().sum())(x)
        return jnp.square(slope.astype(jnp.float32)).sum(tuple(range(1, slope.ndim)))

    def _weight(
        self, output: GeneratorOutput, real: CriticOutput, condition: Array, show: Callable
    ) -> Float[Array, ""]:
        if not self.config.adaptive:
            return jnp.float32(self.config.weight)
        frozen, weights = jax.lax.stop_gradient(self), output.weights

        def adversarial(fake: Array) -> Array:
            scores = _each(self.config.loss.generator, real, frozen.critic(show(fake, 1), condition))
            return Average.of(scores, weights).value()

        def distance(fake: Array) -> Array:
            return Average.of(output.distance(fake), weights).value()

        slopes = [jax.grad(function)(jax.lax.stop_gradient(output.fake)) for function in (distance, adversarial)]
        near, far = (jnp.sqrt(jnp.square(slope).sum()) for slope in slopes)
        return jax.lax.stop_gradient(self.config.weight * jnp.clip(near / jnp.maximum(far, 1e-12), 0, 1e4))


@chz.chz
class AdversarialOutput(Output):
    """An output that makes a picture or a spectrum and whose work a critic judges, given the fused summary."""

    target: str = chz.field(doc="name of the picture or spectrum")
    widths: tuple[int, ...] = chz.field(default=(32, 64, 128), doc="channels by level; each halves the sides")
    adversary: Adversary = chz.field(default=Adversary(), doc="the critic and its game")

    @chz.validate
    def _of_pictures(self) -> None:
        if isinstance(self.adversary.critic, WaveformCritic):
            raise ValueError("a WaveformCritic judges waveforms, and this makes pictures or spectra")

    @property
    def critic_hidden_modalities(self) -> tuple[str, ...]:
        return (self.target,)

    def canvas(self, features: dict[str, Feature]) -> Canvas:
        """The grid of what it makes. Raises UserError where there is none."""
        return make_canvas(type(self).__name__, self.target, self.widths, features)

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> AdversaryModule:
        return self.adversary.build(self.canvas(features).channels, settings, rngs)


def _showing(key: jax.Array | None) -> Callable[[Array, int], Array]:
    """How the critic sees examples, by what kind they are."""
    return lambda x, kind: x if key is None else augment(x, jax.random.fold_in(key, kind))


def _each(loss: Callable[[Scores, Scores], Scores], true: CriticOutput, fake: CriticOutput) -> Float[Array, "B"]:
    """The loss of each example, a mean over its parts, every network of the critic weighing alike."""
    return CriticOutput(tuple(loss(a, b) for a, b in zip(true.scores, fake.scores, strict=True)), ()).mean()


def _apart(true: CriticOutput, fake: CriticOutput) -> Float[Array, "B"]:
    """The mean absolute difference of features (Larsen et al. 2016), every layer weighing alike."""
    pairs = zip(true.features, fake.features, strict=True)
    return CriticOutput(tuple(jnp.abs(a - b).astype(jnp.float32) for a, b in pairs), ()).mean()
