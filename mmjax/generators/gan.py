"""Images and spectrograms from noise and fused tokens, trained adversarially."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.adversary import AdversarialGenerator, AdversarialOutput, GeneratorOutput
from mmjax.generators.canvas import Canvas
from mmjax.layers.attention import CrossBlock, check_heads
from mmjax.layers.conv_autoencoder import Decoder
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.patches import reshape
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics


@chz.chz
class Gan(AdversarialOutput):
    """Conditional GAN of an image or a spectrogram (Goodfellow et al. 2014; Mirza & Osindero 2014).

    Every cell of the smallest grid, a learned position and the noise z, attends to the others and to the fused tokens.
    Then the grid is upsampled by convolutions that z and the fused summary modulate. `reconstruction` adds the squared
    error, which draws the result to the mean of what is possible.
    """

    noise: int = chz.field(default=64, doc="numbers of z")
    depth: int = chz.field(default=2, doc="blocks with attention to the fused tokens")
    heads: int = chz.field(default=4, doc="attention heads")
    reconstruction: float = chz.field(default=0.0, doc="weight of the squared error per number")

    @chz.validate
    def _possible(self) -> None:
        if self.noise < 1 or self.depth < 1 or self.reconstruction < 0:
            raise ValueError("noise and depth must be at least 1, and reconstruction not negative")

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "GanModule":
        check_heads("Gan", self.heads, settings.width)
        return GanModule(self, self.canvas(features), settings, rngs)


class GanModule(AdversarialGenerator):
    """z Float[B Z], fused -> x Float[B H W C]."""

    def __init__(self, config: Gan, canvas: Canvas, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        rows, columns = (side // canvas.unit for side in canvas.shape)
        linear = functools.partial(Linear, axes=(None, "embed"), rules=rules, rngs=rngs)
        self.noise = linear((config.noise, width))
        self.position = make_position((rows, columns, width), rules=rules, rngs=rngs)
        self.blocks = settings.stack(
            lambda rngs: CrossBlock(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs),
            config.depth,
            rngs,
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.grow = Decoder(width, config.widths, canvas.channels, 2 * width, rules=rules, rngs=rngs)
        self.canvas, self.shape, self.numbers = canvas, (rows, columns, width), config.noise
        self.reconstruction, self.dtype, self.rules = config.reconstruction, settings.dtype, rules

    def __call__(self, fused: Fused, key: jax.Array | None) -> Float[Array, "B H W C"]:
        """The output for noise drawn by `key`, in float32; without a key the noise is zero."""
        count, (rows, columns, width) = fused.pooled.shape[0], self.shape
        spec = self.rules.out_sharding("batch", None)
        z = jnp.zeros((count, self.numbers), jnp.float32, out_sharding=spec)
        if key is not None:
            z = jax.random.normal(key, z.shape, out_sharding=spec)
        z, tokens = self.noise(z.astype(self.dtype)), fused.tokens
        position = self.position[...].astype(self.dtype).reshape(rows * columns, width)
        x = position + z[:, None]
        x, _ = self.blocks(x, None, tokens.values.astype(self.dtype), tokens.mask)
        x = reshape(self.norm(x), rows, columns, width, rules=self.rules)
        condition = jnp.concatenate([fused.pooled.astype(self.dtype), z], -1)
        return self.grow(x, condition).astype(jnp.float32)

    def generate(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> GeneratorOutput:
        """Generates from noise and the batch's fused tokens."""
        canvas, size = self.canvas, self.canvas.size(batch)
        x, fake = canvas.from_batch(batch), self(fused, key)

        def squared_error(fake: Array) -> Float[Array, "B"]:
            return canvas.squared_error(x, fake, batch) / jnp.maximum(size, 1)

        def distance(fake: Array) -> Float[Array, "B"]:
            return self.reconstruction * squared_error(fake)

        metrics: Metrics = {"squared_error": Average.of(squared_error(fake), size)}
        return GeneratorOutput(x, canvas.mask(fake, batch), distance, jnp.zeros_like(size), size, metrics)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self.canvas.size(batch).sum()

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {"values": self.canvas.values(self(fused, key))}
