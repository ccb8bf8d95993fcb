"""Fusion by cross-attention: the flagship."""

import functools

import chz
import jax
from flax import nnx

from mmjax.fusion.base import Fusion, Masks, StreamFusion, Streams, check_target, concat_streams
from mmjax.layers.attention import Block, CrossBlock, check_heads
from mmjax.layers.settings import Settings


@chz.chz
class CrossAttention(Fusion):
    """Co-attention (Lu et al. 2019, ViLBERT).

    In every block each modality's stream attends to all the others', then to itself. With a single modality it is a
    plain transformer over its tokens.
    """

    depth: int = chz.field(default=2, doc="blocks of exchange")
    heads: int = chz.field(default=4, doc="attention heads")
    gated: bool = chz.field(
        default=False, doc="scale what others say by tanh of a learned number, 0 at first (Flamingo)"
    )
    target: str | None = chz.field(default=None, doc="the only modality that attends to the others; None: all do")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> StreamFusion:
        check_heads("model.fusion", self.heads, settings.width)
        check_target(self.target, modalities)

        def make(rngs: nnx.Rngs) -> Exchange:
            return Exchange(self, modalities, settings, rngs)

        return StreamFusion(make, self.depth, self.heads, modalities, settings, rngs)


class Exchange(nnx.Module):
    """One block of all streams, each reading the others as they were before it; those that read none, only itself."""

    def __init__(self, config: CrossAttention, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        width, heads, rate, rules = settings.width, config.heads, settings.dropout, settings.rules
        cross = functools.partial(CrossBlock, width, heads, gated=config.gated, rate=rate, rules=rules, rngs=rngs)
        plain = functools.partial(Block, width, heads, rate=rate, rules=rules, rngs=rngs)
        readers = modalities if config.target is None else (config.target,)
        if len(modalities) == 1:
            readers = ()
        self.readers = nnx.Dict({name: cross() for name in readers})
        self.others = nnx.Dict({name: plain() for name in modalities if name not in readers})
        self.modalities = modalities

    def __call__(self, streams: Streams, masks: Masks, key: jax.Array | None) -> Streams:
        keys = [None] * len(streams) if key is None else jax.random.split(key, len(streams))
        result = {}
        for name, stream_key in zip(self.modalities, keys, strict=True):
            x, mask = streams[name], masks[name]
            if name in self.others:
                result[name] = self.others[name](x, mask, stream_key)
                continue
            rest = tuple(other for other in self.modalities if other != name)
            result[name] = self.readers[name](
                x, mask, concat_streams(streams, rest), concat_streams(masks, rest), stream_key
            )
        return result
