"""Fusion by shared attention with a separate MLP per modality."""

import chz
import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.fusion.base import Fusion, Masks, StreamFusion, Streams, concat_streams, residual_shares, split_streams
from mmjax.layers.attention import Attention, check_heads
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings


@chz.chz
class Multiway(Fusion):
    """Shared attention over all tokens, then an MLP per modality: the multiway transformer.

    x <- x + attention(norm(x)), then x_m <- x_m + f_m(norm_m(x_m)). BEiT-3 (Wang et al. 2022), VLMo (Bao et al. 2022).
    """

    depth: int = chz.field(default=2, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> StreamFusion:
        check_heads("model.fusion", self.heads, settings.width)

        def make(rngs: nnx.Rngs) -> MultiwayBlock:
            return MultiwayBlock(self.heads, modalities, settings, rngs)

        return StreamFusion(make, self.depth, self.heads, modalities, settings, rngs)


class MultiwayBlock(nnx.Module):
    """Attention over all tokens, then each modality's own MLP."""

    def __init__(self, heads: int, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.attention = Attention(width, heads, rules=rules, rngs=rngs)
        self.norms = nnx.Dict({name: RMSNorm(width, rules=rules, rngs=rngs) for name in modalities})
        self.mlps = nnx.Dict({name: MLP(width, 4 * width, rules=rules, rngs=rngs) for name in modalities})
        self.modalities, self.rate = modalities, settings.dropout

    def __call__(self, streams: Streams, masks: Masks, key: jax.Array | None) -> Streams:
        first, *rest = [None] * (1 + len(streams)) if key is None else jax.random.split(key, 1 + len(streams))
        x = concat_streams(streams, self.modalities)
        x = x + dropout(self.attention(self.norm(x), mask=concat_streams(masks, self.modalities)), self.rate, first)
        parts = split_streams(x, streams, self.modalities)
        return {
            name: parts[name] + dropout(self.mlps[name](self.norms[name](parts[name])), self.rate, mlp_key)
            for name, mlp_key in zip(self.modalities, rest, strict=True)
        }

    def mixture(self, streams: Streams, masks: Masks) -> Float[Array, "B T T"]:
        x, mask = concat_streams(streams, self.modalities), concat_streams(masks, self.modalities)
        return residual_shares(self.attention.weights(self.norm(x), mask=mask))
