"""Text transformer."""

import chz
import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.layers.attention import Block, Mask, check_heads
from mmjax.layers.linear import Embedding
from mmjax.layers.norm import RMSNorm
from mmjax.layers.packed import select_positions
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Text, Tokens


@chz.chz
class TextTransformer(Encoder):
    """Bidirectional transformer over token ids (Devlin et al. 2019)."""

    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def packed_stride(self, feature: Feature) -> int:
        return 1

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "TextEncoder":
        text = require_feature(self, feature, Text)
        check_heads("TextTransformer", self.heads, settings.width)
        return TextEncoder(self, text, settings, rngs)


class TextEncoder(nnx.Module):
    """Token embedding and learned position -> transformer -> norm."""

    def __init__(self, config: TextTransformer, feature: Text, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.embed = Embedding(feature.vocabulary, width, rules=rules, rngs=rngs)
        self.position = make_position((feature.length, width), rules=rules, rngs=rngs)
        self.stack = settings.stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Int[Array, "B N"] | Float[Array, "B N V"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x = self.embed(values, self.dtype) + select_positions(self.position, mask, self.dtype, self.rules)
        x, layers = self.stack(x, mask, key=key)
        return Tokens(self.norm(x), mask > 0), {"layers": layers}
