"""FT-Transformer: vectors of numbers, a token each."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.layers.attention import Block, check_heads
from mmjax.layers.linear import make_parameter
from mmjax.layers.norm import RMSNorm
from mmjax.layers.patches import reshape
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Tokens, Vector


@chz.chz
class FTTransformer(Encoder):
    """Transformer over the numbers of vectors, such as the columns of a table (Gorishniy et al. 2021)."""

    depth: int = chz.field(default=2, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "VectorEncoder":
        vector = require_feature(self, feature, Vector)
        check_heads("FTTransformer", self.heads, settings.width)
        return VectorEncoder(self, vector, settings, rngs)


class VectorEncoder(nnx.Module):
    """Each number times a learned vector plus another -> transformer -> norm.

    Float[B S Q] becomes Tokens of N = S * Q.
    """

    def __init__(self, config: FTTransformer, feature: Vector, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        shape = (feature.size, width)
        self.weight = make_parameter(jax.nn.initializers.normal(0.5), shape, (None, None), rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.normal(0.5), shape, (None, None), rules=rules, rngs=rngs)
        self.stack = settings.stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B S Q"], mask: Bool[Array, "B S"], key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        """Tokens slot by slot; those of absent slots are masked."""
        slots, size = values.shape[1:]
        x = values[..., None].astype(self.dtype) * self.weight[...].astype(self.dtype) + self.bias[...].astype(
            self.dtype
        )
        x = reshape(x, slots * size, x.shape[-1], rules=self.rules)
        real = reshape(jnp.broadcast_to(mask[..., None], values.shape), slots * size, rules=self.rules)
        x, layers = self.stack(x, real, key=key)
        return Tokens(self.norm(x), real), {"layers": layers}
