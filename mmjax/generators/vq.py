"""Vector-quantized autoencoders of images and spectrograms."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.adversary import AdversarialGenerator, AdversarialOutput, Adversary, GeneratorOutput
from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.codes import Codebook, Quantizer
from mmjax.generators.critics import PatchCritic
from mmjax.generators.perceptual import Perceptual
from mmjax.layers.conv_autoencoder import Decoder, Encoder
from mmjax.layers.output import Output
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Counts, Feature, Fused, Metrics


@chz.chz
class VqVae(Output):
    """Vector-quantized autoencoder of an image or a spectrogram x (van den Oord et al. 2017).

    The loss is the squared error of x, per number, plus the quantizer's. It is a tokenizer: it does not read the fused
    features, and predicts nothing.
    """

    target: str = chz.field(doc="name of the image or spectrogram")
    quantizer: Quantizer = chz.field(default=Codebook(), doc="how a vector becomes a code: Codebook or Fsq")
    widths: tuple[int, ...] = chz.field(default=(32, 64), doc="channels by level; each halves the sides")

    @property
    def generated_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VqModule":
        return VqModule(self, make_canvas(type(self).__name__, self.target, self.widths, features), settings, rngs)


@chz.chz
class VqGan(AdversarialOutput, VqVae):
    """A `VqVae` with a critic and, optionally, a perceptual distance (Esser et al. 2021)."""

    adversary: Adversary = chz.field(
        default=Adversary(critic=PatchCritic(conditional=False), adaptive=True, weight=0.5),
        doc="the critic and its loss",
    )
    perceptual: Perceptual | None = chz.field(
        default=None, doc="perceptual distance, added to the squared error; None: none"
    )

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VqModule":
        return VqModule(self, self.canvas(features), settings, rngs, self.perceptual)


class VqModule(AdversarialGenerator):
    """x Float[B H W C] -> codes Int[B h w] -> x."""

    reconstructs = True

    def __init__(
        self,
        config: VqVae,
        canvas: Canvas,
        settings: Settings,
        rngs: nnx.Rngs,
        perceptual: Perceptual | None = None,
    ):
        rules = settings.rules
        self.quantizer = config.quantizer.build(rules, rngs)
        latent = self.quantizer.width
        self.shrink = Encoder(canvas.channels, config.widths, latent, rules=rules, rngs=rngs)
        self.grow = Decoder(latent, config.widths, canvas.channels, rules=rules, rngs=rngs)
        self.perceptual = None if perceptual is None else perceptual.build(canvas.channels, settings, rngs)
        self.canvas, self.dtype = canvas, settings.dtype

    def encode(self, batch: Batch) -> Int[Array, "B h w"]:
        """The codes of the batch's images or spectrograms."""
        return self.quantizer(self.shrink(self.canvas.from_batch(batch).astype(self.dtype)), None)[1]

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B ..."]:
        """Values of the feature from codes."""
        return self.canvas.values(self.grow(self.quantizer.look_up(codes).astype(self.dtype), None))

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self.canvas.size(batch).sum()

    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """Reconstructs the batch."""
        canvas, size = self.canvas, self.canvas.size(batch)
        x = canvas.from_batch(batch)
        z, codes, cost = self.quantizer(self.shrink(x.astype(self.dtype)), key)
        fake = self.grow(z, None).astype(jnp.float32)

        def squared_error(fake: Array) -> Float[Array, "B"]:
            return canvas.squared_error(x, fake, batch) / jnp.maximum(size, 1)

        def distance(fake: Array) -> Float[Array, "B"]:
            return squared_error(fake) if self.perceptual is None else squared_error(fake) + self.perceptual(x, fake)

        present = (size > 0)[:, None, None, None]
        occurred = jnp.where(present, jax.nn.one_hot(codes, self.quantizer.size), 0).sum((0, 1, 2))
        metrics: Metrics = {
            "squared_error": Average.of(squared_error(fake), size),
            "quantization": Average.of(cost, size),
            "codebook": Counts(occurred),
        }
        return GeneratorOutput(x, canvas.mask(fake, batch), distance, cost, size, metrics)

    def reconstruct(self, fused: Fused, batch: Batch) -> Float[Array, "B ..."]:
        """The batch encoded and decoded, as values of the feature."""
        return self.canvas.values(self.generate(fused, batch, None, None).fake)
