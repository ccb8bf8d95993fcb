"""Log-mel transformer."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, expect, expect_heads
from mmjax.layers.attention import Block
from mmjax.layers.linear import Linear
from mmjax.layers.norm import Norm
from mmjax.layers.patches import cut_sequence, reshape
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.types import Feature, Spectrum, Tokens


@chz.chz
class Spectrogram(Encoder):
    """Transformer over groups of consecutive log-mel frames.

    After Gong et al. 2021, with patches as high as the spectrum.
    """

    patch: int = chz.field(default=4, doc="frames per token")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "SpectrogramEncoder":
        spectrum = expect(self, feature, Spectrum)
        expect_heads("Spectrogram.heads", settings.width, self.heads)
        return SpectrogramEncoder(self, spectrum, settings, rngs)


class SpectrogramEncoder(nnx.Module):
    """Frame patches -> two-layer embedding, learned position -> transformer -> norm.

    A token is real where any frame of it is.
    """

    def __init__(self, config: Spectrogram, feature: Spectrum, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        count = -(-feature.frames // config.patch)
        self.embed = Linear((config.patch * feature.bands, width), (None, "mlp"), bias=True, rules=rules, rngs=rngs)
        self.mix = Linear((width, width), ("mlp", "embed"), bias=True, rules=rules, rngs=rngs)
        self.position = make_position((count, width), rules=rules, rngs=rngs)
        self.stack = Stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs),
            config.depth,
            remat=settings.remat,
            unroll=settings.unroll,
            rngs=rngs,
        )
        self.norm = Norm(width, rules=rules, rngs=rngs)
        self.patch, self.seconds, self.count = config.patch, feature.seconds, count
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B T M"], mask: Bool[Array, "B T"], key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        missing = self.count * self.patch - values.shape[1]
        values = jnp.pad(values, ((0, 0), (0, missing), (0, 0)))
        mask = jnp.pad(mask, ((0, 0), (0, missing)))
        patches = reshape(values, self.count, self.patch * values.shape[2], rules=self.rules)
        real = cut_sequence(mask, self.patch, rules=self.rules).any(2)
        x = self.mix(jax.nn.gelu(self.embed(patches.astype(self.dtype))))
        x = x + self.position[...].astype(self.dtype)
        x, layers = self.stack(x, real, key=key)
        time = (jnp.arange(self.count) + 0.5) * self.patch * self.seconds + jnp.zeros_like(x[..., 0], dtype=jnp.float32)
        return Tokens(self.norm(x), real, time), {"layers": layers}
