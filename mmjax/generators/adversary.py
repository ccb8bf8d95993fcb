"""Adversarial training: the critic and the losses of generator and critic."""

import abc
import dataclasses
from collections.abc import Callable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.augmentation import diff_augment
from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.critics import Critic, CriticOutput, PatchCritic
from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.linear import make_parameter
from mmjax.layers.output import Output, OutputModule
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics

# A critic's scores of true or generated examples.
Scores = Float[Array, "B ..."]


@dataclasses.dataclass(frozen=True)
class GeneratorOutput:
    """What a generator produced for a batch, with the true examples.

    `distance(fake)` is each example's reconstruction loss, a mean over its numbers, and `extra_loss` each example's
    other loss. `weights` are the examples' weights in the loss, 0 where there is no true example.
    """

    true: Float[Array, "B ..."]
    fake: Float[Array, "B ..."]
    distance: Callable[[Float[Array, "B ..."]], Float[Array, "B"]]
    extra_loss: Float[Array, "B"]
    weights: Float[Array, "B"]
    metrics: Metrics

    def loss(self) -> tuple[Average, Metrics]:
        """The generator's own loss, without the adversarial term."""
        loss = Average.of(self.distance(self.fake) + self.extra_loss, self.weights)
        return loss, self.metrics


@chz.chz
class AdversarialLoss(abc.ABC):
    """The losses of generator and critic as functions of the critic's scores."""

    @abc.abstractmethod
    def generator_loss(self, true: Scores, fake: Scores) -> Scores:
        """The generator's loss."""

    @abc.abstractmethod
    def critic_loss(self, true: Scores, fake: Scores) -> Scores:
        """The critic's loss."""


@chz.chz
class Relativistic(AdversarialLoss):
    """Paired: softplus(true - fake) for the generator, softplus(fake - true) for the critic.

    Jolicoeur-Martineau 2019; Huang et al. 2024.
    """

    def generator_loss(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(true - fake)

    def critic_loss(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(fake - true)


@chz.chz
class NonSaturating(AdversarialLoss):
    """softplus(-fake) and softplus(-true) + softplus(fake) (Goodfellow et al. 2014, section 3)."""

    def generator_loss(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(-fake)

    def critic_loss(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.softplus(-true) + jax.nn.softplus(fake)


@chz.chz
class Hinge(AdversarialLoss):
    """-fake and max(0, 1 - true) + max(0, 1 + fake) (Lim & Ye 2017)."""

    def generator_loss(self, true: Scores, fake: Scores) -> Scores:
        return -fake

    def critic_loss(self, true: Scores, fake: Scores) -> Scores:
        return jax.nn.relu(1 - true) + jax.nn.relu(1 + fake)


@chz.chz
class LeastSquares(AdversarialLoss):
    """(1 - fake)^2 and (1 - true)^2 + fake^2 (Mao et al. 2017)."""

    def generator_loss(self, true: Scores, fake: Scores) -> Scores:
        return jnp.square(1 - fake)

    def critic_loss(self, true: Scores, fake: Scores) -> Scores:
        return jnp.square(1 - true) + jnp.square(fake)


@chz.chz
class Adversary:
    """A critic and the adversarial loss terms.

    The generator's loss gains weight * (its adversarial loss) + feature_matching * |features of true - of fake|. The
    critic's loss is its adversarial loss

    + gradient_penalty / 2 * (|d score / d true|^2 + |d score / d fake|^2) (R1 and R2, Mescheder et al. 2018)
    + lecam * ((score of true - average score of fake)^2 + the same with both swapped) (LeCam, Tseng et al. 2021).
    """

    loss: AdversarialLoss = chz.field(default=Relativistic(), doc="the adversarial loss")
    critic: Critic = chz.field(default=PatchCritic(), doc="the critic's network")
    weight: float = chz.field(default=1.0, doc="weight of the adversarial loss in the generator's loss")
    adaptive: bool = chz.field(
        default=False,
        doc="also scale the adversarial loss by the ratio of gradient norms (after Esser et al. 2021)",
    )
    feature_matching: float = chz.field(default=0.0, doc="weight of the feature matching loss (Larsen et al. 2016)")
    warmup: int = chz.field(default=0, doc="steps in which only the critic uses the adversarial loss")
    gradient_penalty: float = chz.field(default=1.0, doc="weight of the R1 and R2 gradient penalties")
    lecam: float = chz.field(default=0.0, doc="weight of the LeCam regularization")
    augment: bool = chz.field(default=True, doc="whether the critic sees everything with DiffAugment")

    @chz.validate
    def _possible(self) -> None:
        for name in ("weight", "feature_matching", "warmup", "gradient_penalty", "lecam"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> "AdversaryModule":
        """The critic for grids with this many channels, with its other parameters."""
        return AdversaryModule(self, channels, settings, rngs)


class AdversaryModule(nnx.Module):
    """See `Adversary`. Scores, losses and penalties are in float32."""

    def __init__(self, config: Adversary, channels: int, settings: Settings, rngs: nnx.Rngs):
        self.critic = config.critic.build(channels, settings, rngs)
        zeros = jax.nn.initializers.zeros
        # Average scores of true and fake examples, in hundreds, so that small optimizer steps move them fast enough.
        self.score_ema = make_parameter(zeros, (2,), (None,), rules=settings.rules, rngs=rngs) if config.lecam else None
        self.config = config

    def losses(
        self,
        output: GeneratorOutput,
        condition: Float[Array, "B D"],
        key: jax.Array | None,
        step: Int[Array, ""] | None,
    ) -> tuple[Average, Average, Metrics]:
        """The generator's loss, without gradient for this module, and the critic's, only with it.

        So the gradient of their sum holds both updates, and one forward pass of each network serves both.
        """
        config, weights = self.config, output.weights
        condition = jax.lax.stop_gradient(condition)
        true, fake = output.true, output.fake
        show = _augmentation(key if config.augment else None)
        frozen = jax.lax.stop_gradient(self)

        loss, metrics = output.loss()
        on_true = frozen.critic(show(true, 0), condition)
        on_fake = frozen.critic(show(fake, 1), condition)
        adversarial_loss = _each(config.loss.generator_loss, on_true, on_fake) * self._weight(
            output, on_true, condition, show
        )
        if config.feature_matching:
            adversarial_loss = adversarial_loss + config.feature_matching * _feature_distance(on_true, on_fake)
        counts = 1.0 if step is None else (step >= config.warmup).astype(jnp.float32)
        loss = Average(loss.totals + counts * Average.of(adversarial_loss, weights).totals, loss.weights)

        costs, details = self._loss(show(true, 0), show(jax.lax.stop_gradient(fake), 1), condition)
        critic_loss = Average.of(costs, weights)
        metrics = metrics | {name: Average.of(value, weights) for name, value in details.items()}
        return loss, critic_loss, {**metrics, "critic": critic_loss}

    def _loss(self, true: Array, fake: Array, condition: Array) -> tuple[Float[Array, "B"], dict[str, Array]]:
        """The critic's loss by example, and its metrics."""
        config = self.config
        on_true, on_fake = self.critic(true, condition), self.critic(fake, condition)
        loss = _each(config.loss.critic_loss, on_true, on_fake)
        details = {"true_score": on_true.mean(), "fake_score": on_fake.mean()}
        if config.gradient_penalty:
            penalty = self._gradient_penalty(true, condition) + self._gradient_penalty(fake, condition)
            details["gradient_penalty"] = penalty / 2
            loss = loss + config.gradient_penalty * details["gradient_penalty"]
        if self.score_ema is not None:
            score_ema = 100 * self.score_ema[...]
            scores = jnp.stack([on_true.mean(), on_fake.mean()], 1)
            far = jnp.square(scores - jax.lax.stop_gradient(score_ema)[::-1])
            # The average scores minimise their distance from all scores: a running mean without extra state.
            follow = jnp.square(score_ema - jax.lax.stop_gradient(scores))
            loss = loss + (config.lecam * far + follow).sum(1)
        return loss, details

    def _gradient_penalty(self, x: Array, condition: Array) -> Float[Array, "B"]:
        """|d score / d x|^2."""
        gradient = jax.grad(lambda x: self.critic(x, condition).mean().sum())(x)
        return jnp.square(gradient.astype(jnp.float32)).sum(tuple(range(1, gradient.ndim)))

    def _weight(
        self, output: GeneratorOutput, on_true: CriticOutput, condition: Array, show: Callable
    ) -> Float[Array, ""]:
        if not self.config.adaptive:
            return jnp.float32(self.config.weight)
        frozen, weights = jax.lax.stop_gradient(self), output.weights

        def adversarial(fake: Array) -> Array:
            scores = _each(self.config.loss.generator_loss, on_true, frozen.critic(show(fake, 1), condition))
            return Average.of(scores, weights).value()

        def distance(fake: Array) -> Array:
            return Average.of(output.distance(fake), weights).value()

        slopes = [jax.grad(function)(jax.lax.stop_gradient(output.fake)) for function in (distance, adversarial)]
        near, far = (jnp.sqrt(jnp.square(gradient).sum()) for gradient in slopes)
        return jax.lax.stop_gradient(self.config.weight * jnp.clip(near / jnp.maximum(far, 1e-12), 0, 1e4))


@chz.chz
class AdversarialOutput(Output):
    """An output that generates an image or a spectrogram and is trained with a critic."""

    target: str = chz.field(doc="name of the image or spectrogram")
    widths: tuple[int, ...] = chz.field(default=(32, 64, 128), doc="channels by level; each halves the sides")
    adversary: Adversary = chz.field(default=Adversary(), doc="the critic and its loss")

    @chz.validate
    def _of_pictures(self) -> None:
        if isinstance(self.adversary.critic, WaveformCritic):
            raise ValueError(
                "a WaveformCritic scores waveforms; choose another adversary.critic for images and spectrograms"
            )

    @property
    def critic_hidden_modalities(self) -> tuple[str, ...]:
        return (self.target,)

    def canvas(self, features: dict[str, Feature]) -> Canvas:
        """The grid of its target; raises UserError where there is none."""
        return make_canvas(type(self).__name__, self.target, self.widths, features)

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> AdversaryModule:
        return self.adversary.build(self.canvas(features).channels, settings, rngs)


class AdversarialGenerator(OutputModule):
    """Base of modules that an `AdversarialOutput` builds: the loss without a critic, and no predictions."""

    @abc.abstractmethod
    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """Generates from a batch, for `loss` or for a critic."""

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        return self.generate(fused, batch, key, step).loss()

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {}


def _augmentation(key: jax.Array | None) -> Callable[[Array, int], Array]:
    """The critic's view of examples: augmented, differently for true (0) and fake (1) ones."""
    return lambda x, kind: x if key is None else diff_augment(x, jax.random.fold_in(key, kind))


def _each(loss: Callable[[Scores, Scores], Scores], true: CriticOutput, fake: CriticOutput) -> Float[Array, "B"]:
    """The loss of each example: a mean over its scores, with equal weight for every network."""
    return CriticOutput(tuple(loss(a, b) for a, b in zip(true.scores, fake.scores, strict=True)), ()).mean()


def _feature_distance(true: CriticOutput, fake: CriticOutput) -> Float[Array, "B"]:
    """The mean absolute difference of features (Larsen et al. 2016), with equal weight for every layer."""
    pairs = zip(true.features, fake.features, strict=True)
    return CriticOutput(tuple(jnp.abs(a - b).astype(jnp.float32) for a, b in pairs), ()).mean()
