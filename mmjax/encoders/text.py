"""Text transformer."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.encoders.base import Encoder, Intermediates, make_stack, require_feature
from mmjax.layers.attention import Mask, check_heads
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import Embedding
from mmjax.layers.norm import make_norm
from mmjax.layers.packed import select_positions
from mmjax.layers.pool import Pool
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Text, Tokens


@chz.chz
class TextTransformer(Encoder):
    """Bidirectional transformer over token ids (Devlin et al. 2019)."""

    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    block: BlockOptions = chz.field(default=BlockOptions(), doc="how the blocks are built")
    pool: Pool | None = chz.field(default=None, doc="a summary of the tokens, for Contrast.pooling=encoder")
    attend_padding: bool = chz.field(default=False, doc="padding counts as tokens, as in SigLIP's text encoder")

    def packed_stride(self, feature: Feature) -> int | None:
        return 1 if self.pool is None and not self.attend_padding else None

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "TextEncoder":
        text = require_feature(self, feature, Text)
        check_heads("TextTransformer", self.heads, settings.width)
        return TextEncoder(self, text, settings, rngs)


class TextEncoder(nnx.Module):
    """Token embedding and learned position -> transformer -> norm.

    With post-norm blocks the norm comes before the transformer.
    """

    def __init__(self, config: TextTransformer, feature: Text, settings: Settings, rngs: nnx.Rngs):
        rules, width, block = settings.rules, settings.width, config.block
        self.embed = Embedding(feature.vocabulary, width, rules=rules, rngs=rngs)
        self.position = make_position((feature.length, width), rules=rules, rngs=rngs)
        self.stack = make_stack(block, config.depth, config.heads, settings, rngs)
        self.norm = make_norm(block, width, rules=rules, rngs=rngs)
        self.pool = None if config.pool is None else config.pool.build(config.heads, block, settings, rngs)
        self.post_norm, self.attend_padding = block.post_norm, config.attend_padding
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Int[Array, "B N"] | Float[Array, "B N V"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        if self.attend_padding:
            # An absent text has no real token, and stays without.
            mask = jnp.broadcast_to(mask.any(1, keepdims=True), mask.shape)
        x = self.embed(values, self.dtype) + select_positions(self.position, mask, self.dtype, self.rules)
        x, layers = self.stack(self.norm(x) if self.post_norm else x, mask, key=key)
        x = x if self.post_norm else self.norm(x)
        pooled = None if self.pool is None else self.pool(x, mask)
        return Tokens(x, mask > 0, pooled=pooled), {"layers": layers}
