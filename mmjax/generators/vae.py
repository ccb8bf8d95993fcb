"""Variational autoencoders of images and spectrograms."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.adversary import AdversarialGenerator, AdversarialOutput, Adversary, GeneratorOutput
from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.gaussian import MAX_LOG_DEVIATION, MIN_LOG_DEVIATION, Gaussian
from mmjax.generators.perceptual import Perceptual
from mmjax.layers.conv_autoencoder import Decoder, Encoder
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.output import Output
from mmjax.layers.patches import reshape
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics


@chz.chz
class Vae(Output):
    """Conditional VAE of an image or a spectrogram x (Kingma & Welling 2014; Sohn et al. 2015).

    The loss is -log p(x | z, fused) + beta * sum over channels of max(KL(q(z | x) || p(z | fused)), free_bits), per
    number of x. z ~ q is a grid of Gaussians; p(x | z, fused) is a Gaussian with one learned deviation (Rybkin et al.
    2021); free bits are those of Kingma et al. (2016), here for each example and channel. Without `conditional` the
    fused features are not read and p(z) is the standard Gaussian.
    """

    target: str = chz.field(doc="name of the image or spectrogram")
    latent: int = chz.field(default=8, doc="channels of z")
    widths: tuple[int, ...] = chz.field(default=(32, 64, 128), doc="channels by level; each halves the sides")
    conditional: bool = chz.field(default=True, doc="prior and decoder read the fused features")
    beta: float = chz.field(default=1.0, doc="weight of the KL divergence (Higgins et al. 2017)")
    free_bits: float = chz.field(default=0.0, doc="minimum of each channel's divergence in the loss, nats")
    warmup: int = chz.field(default=0, doc="steps over which beta rises from 0")

    @chz.validate
    def _possible(self) -> None:
        if self.latent < 1:
            raise ValueError(f"latent={self.latent} must be at least 1")
        for name in ("beta", "free_bits", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def target_feature(self) -> str:
        return self.target

    @property
    def hidden_modalities(self) -> tuple[str, ...]:
        return (self.target,) if self.conditional else ()  # what is not read need not be hidden

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VaeModule":
        return VaeModule(self, make_canvas(type(self).__name__, self.target, self.widths, features), settings, rngs)


@chz.chz
class VaeGan(AdversarialOutput, Vae):
    """A `Vae` with a critic and, optionally, a perceptual distance (Larsen et al. 2016).

    The critic sees reconstructions from z ~ q(z | x).
    """

    adversary: Adversary = chz.field(default=Adversary(adaptive=True, weight=0.5), doc="the critic and its loss")
    perceptual: Perceptual | None = chz.field(
        default=None, doc="perceptual distance, added to the squared error; None: none"
    )

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VaeModule":
        return VaeModule(self, self.canvas(features), settings, rngs, self.perceptual)


class VaeModule(AdversarialGenerator):
    """x Float[B H W C] -> q(z | x), Float[B h w Z] twice -> p(x | z, fused). Statistics are float32."""

    reconstructs = True

    def __init__(
        self,
        config: Vae,
        canvas: Canvas,
        settings: Settings,
        rngs: nnx.Rngs,
        perceptual: Perceptual | None = None,
    ):
        rules, width = settings.rules, settings.width
        rows, columns = (side // canvas.unit for side in canvas.shape)
        condition = width if config.conditional else None
        self.shrink = Encoder(canvas.channels, config.widths, 2 * config.latent, rules=rules, rngs=rngs)
        self.grow = Decoder(config.latent, config.widths, canvas.channels, condition, rules=rules, rngs=rngs)
        shape, axes = (width, rows * columns * config.latent * 2), ("embed", None)
        prior = functools.partial(Linear, shape, axes, bias=True, scale=0.0, rules=rules, rngs=rngs)
        self.prior = prior() if config.conditional else None
        self.deviation = make_parameter(jax.nn.initializers.zeros, (), (), rules=rules, rngs=rngs)
        self.perceptual = None if perceptual is None else perceptual.build(canvas.channels, settings, rngs)
        self.canvas, self.shape = canvas, (rows, columns, config.latent)
        self.beta, self.free_bits, self.warmup = config.beta, config.free_bits, config.warmup
        self.dtype, self.rules = settings.dtype, rules

    def encode(self, x: Float[Array, "B H W C"]) -> Gaussian:
        """q(z | x)."""
        return Gaussian.of(self.shrink(x.astype(self.dtype)))

    def prior_distribution(self, fused: Fused) -> Gaussian:
        """p(z | fused)."""
        count = fused.pooled.shape[0]
        shape = (count, *self.shape)
        if self.prior is None:
            zeros = jnp.zeros(shape, jnp.float32, out_sharding=self.rules.out_sharding("batch", None, None, None))
            return Gaussian(zeros, zeros + 1)
        rows, columns, latent = self.shape
        return Gaussian.of(reshape(self.prior(fused.pooled), rows, columns, 2 * latent, rules=self.rules))

    def decode(self, z: Float[Array, "B h w Z"], fused: Fused) -> Float[Array, "B H W C"]:
        """The mean of p(x | z, fused), in float32."""
        return self.grow(z.astype(self.dtype), fused.pooled).astype(jnp.float32)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self.canvas.size(batch).sum()

    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """Reconstructs the batch."""
        canvas, size = self.canvas, self.canvas.size(batch)
        x = canvas.from_batch(batch)
        q, p = self.encode(x), self.prior_distribution(fused)
        fake = self.decode(q.sample(key), fused)
        log_deviation = jnp.clip(self.deviation[...], MIN_LOG_DEVIATION, MAX_LOG_DEVIATION)
        half_log = log_deviation + 0.5 * jnp.log(2 * jnp.pi)
        divergence = q.kl_divergence(p).sum((1, 2))
        warmup = 1.0 if step is None or not self.warmup else jnp.minimum(1.0, step / self.warmup)
        numbers = jnp.maximum(size, 1)

        def negative(fake: Array) -> Float[Array, "B"]:
            return (canvas.squared_error(x, fake, batch) * jnp.exp(-2 * log_deviation) / 2 + size * half_log) / numbers

        def distance(fake: Array) -> Float[Array, "B"]:
            return negative(fake) if self.perceptual is None else negative(fake) + self.perceptual(x, fake)

        metrics: Metrics = {
            "reconstruction": Average.of(negative(fake), size),
            "squared_error": Average.of(canvas.squared_error(x, fake, batch) / numbers, size),
            "kl": Average.of(divergence.sum(-1), size > 0),
        }
        extra_loss = warmup * self.beta * jnp.maximum(divergence, self.free_bits).sum(-1) / numbers
        return GeneratorOutput(x, canvas.mask(fake, batch), distance, extra_loss, size, metrics)

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B ..."]:
        """The batch reconstructed from the mean of q(z | x), as values of the feature."""
        return self.canvas.values(self.generate(fused, batch, None, None).fake)

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        """Decodes a sample of the prior, or the prior's mean where `key` is None."""
        return {"values": self.canvas.values(self.decode(self.prior_distribution(fused).sample(key), fused))}
