"""Early fusion: one transformer over all tokens."""

import chz
import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.fusion.base import Fusion, Masks, StreamFusion, Streams, concat_streams, residual_shares, split_streams
from mmjax.layers.attention import Block, check_heads
from mmjax.layers.settings import Settings


@chz.chz
class SingleStream(Fusion):
    """x <- transformer([x1; ...; xM]): every token attends to every other (Chen et al. 2020)."""

    depth: int = chz.field(default=2, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> StreamFusion:
        check_heads("model.fusion", self.heads, settings.width)

        def make(rngs: nnx.Rngs) -> JointBlock:
            return JointBlock(self.heads, modalities, settings, rngs)

        return StreamFusion(make, self.depth, self.heads, modalities, settings, rngs)


class JointBlock(nnx.Module):
    """A transformer block over all tokens as one sequence."""

    def __init__(self, heads: int, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        self.block = Block(settings.width, heads, rate=settings.dropout, rules=settings.rules, rngs=rngs)
        self.modalities = modalities

    def __call__(self, streams: Streams, masks: Masks, key: jax.Array | None) -> Streams:
        x = self.block(concat_streams(streams, self.modalities), concat_streams(masks, self.modalities), key)
        return split_streams(x, streams, self.modalities)

    def mixture(self, streams: Streams, masks: Masks) -> Float[Array, "B T T"]:
        x, mask = concat_streams(streams, self.modalities), concat_streams(masks, self.modalities)
        return residual_shares(self.block.self_weights(x, mask))
