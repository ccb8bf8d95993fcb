"""Pictures and spectra as grids of codes, and back: the vector-quantized autoencoder."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.codes import Codebook, Quantizer
from mmjax.layers.output import Output
from mmjax.layers.pyramid import Grow, Shrink
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Counts, Feature, Fused, Metrics


@chz.chz
class VqVae(Output):
    """Vector-quantized autoencoder of a picture or a spectrum x (van den Oord et al. 2017).

    The squared error of x, per number, and what the quantizer wants kept small. It is a tokenizer: it does not read the
    fused features, and predicts nothing.
    """

    target: str = chz.field(doc="name of the picture or spectrum")
    quantizer: Quantizer = chz.field(default=Codebook(), doc="how a vector becomes a code: Codebook or Fsq")
    widths: tuple[int, ...] = chz.field(default=(32, 64), doc="channels by level; each halves the sides")

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "VqModule":
        return VqModule(self, make_canvas("VqVae", self.target, self.widths, features), settings, rngs)


class VqModule(nnx.Module):
    """x Float[B H W C] -> codes Int[B h w] -> x."""

    def __init__(self, config: VqVae, canvas: Canvas, settings: Settings, rngs: nnx.Rngs):
        rules = settings.rules
        self.quantizer = config.quantizer.build(rules, rngs)
        latent = self.quantizer.width
        self.shrink = Shrink(canvas.channels, config.widths, latent, rules=rules, rngs=rngs)
        self.grow = Grow(latent, config.widths, canvas.channels, rules=rules, rngs=rngs)
        self.canvas, self.dtype = canvas, settings.dtype

    def encode(self, batch: Batch) -> Int[Array, "B h w"]:
        """The codes of the batch's pictures or spectra."""
        return self.quantizer(self.shrink(self.canvas.paint(batch).astype(self.dtype)), None)[1]

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B ..."]:
        """What codes stand for, in the feature's own terms."""
        return self.canvas.values(self.grow(self.quantizer.look_up(codes).astype(self.dtype), None))

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self.canvas.size(batch).sum()

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        x, rows, size = self.canvas.paint(batch), self.canvas.weights(batch), self.canvas.size(batch)
        z, codes, cost = self.quantizer(self.shrink(x.astype(self.dtype)), key)
        said = self.grow(z, None).astype(jnp.float32)
        squares = jnp.einsum("btmc,bt->b", jnp.square(self.canvas.crop(said - x)), rows) / jnp.maximum(size, 1)
        loss = Average.of(squares + cost, size)
        there = (size > 0)[:, None, None, None]
        occurred = jnp.where(there, jax.nn.one_hot(codes, self.quantizer.size), 0).sum((0, 1, 2))
        metrics = {"square_error": Average.of(squares, size), "quantization": Average.of(cost, size)}
        return loss, {"loss": loss, **metrics, "codebook": Counts(occurred)}

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {}
