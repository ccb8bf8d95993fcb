"""Fusion by shared attention with a perceptron for every modality."""

import chz
import jax
from flax import nnx

from mmjax.fusion.base import Fusion, Masks, StreamFusion, Streams, concat_streams, split_streams
from mmjax.layers.attention import Attention, check_heads
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings


@chz.chz
class Multiway(Fusion):
    """x <- x + attention(norm(x)) over all tokens, then x_m <- x_m + f_m(norm_m(x_m)), a perceptron per modality.

    The multiway transformer of BEiT-3 (Wang et al. 2022) and VLMo (Bao et al. 2022).
    """

    depth: int = chz.field(default=2, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> StreamFusion:
        check_heads("model.fusion", self.heads, settings.width)

        def make(rngs: nnx.Rngs) -> MultiwayBlock:
            return MultiwayBlock(self.heads, modalities, settings, rngs)

        return StreamFusion(make, self.depth, self.heads, modalities, settings, rngs)


class MultiwayBlock(nnx.Module):
    """Attention of all tokens to all, then every modality's own perceptron."""

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
