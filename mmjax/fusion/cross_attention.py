"""Fusion by cross-attention."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.fusion.base import Fusion, Masks, StreamFusion, Streams, check_target, concat_streams, residual_shares
from mmjax.layers.attention import Block, CrossBlock, check_heads
from mmjax.layers.settings import Settings


@chz.chz
class CrossAttention(Fusion):
    """Fusion by co-attention: each modality's tokens attend to the others' (ViLBERT, Lu et al. 2019).

    In every block each modality's stream attends to all the others', then to itself. With a single modality it is a
    plain transformer over its tokens.
    """

    depth: int = chz.field(default=2, doc="co-attention blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    gated: bool = chz.field(
        default=False, doc="scale cross-attention by tanh of a learned number, 0 at first (Flamingo)"
    )
    target: str | None = chz.field(default=None, doc="the only modality that attends to others; None: all of them")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> StreamFusion:
        check_heads("model.fusion", self.heads, settings.width)
        check_target(self.target, modalities)

        def make(rngs: nnx.Rngs) -> CoAttentionBlock:
            return CoAttentionBlock(self, modalities, settings, rngs)

        return StreamFusion(make, self.depth, self.heads, modalities, settings, rngs)


class CoAttentionBlock(nnx.Module):
    """One co-attention block: every stream attends to the others' inputs, or only to itself."""

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

    def mixture(self, streams: Streams, masks: Masks) -> Float[Array, "B T T"]:
        """See `StreamBlock`: cross-attention, in the ratio 1 : |tanh a| where gated, then self-attention."""
        mask = concat_streams(masks, self.modalities)
        crossed, owned, start = [], [], 0
        for name in self.modalities:
            x, behind = streams[name], mask.shape[1] - start - streams[name].shape[1]
            if name in self.others:
                own = self.others[name].self_weights(x, masks[name])
                across = jnp.zeros_like(own)[..., :0]
                across = jnp.pad(across, ((0, 0), (0, 0), (0, start + behind)))
            else:
                reader, rest = self.readers[name], tuple(other for other in self.modalities if other != name)
                context, seen = (concat_streams(each, rest) for each in (streams, masks))
                across = reader.cross.weights(reader.norm(x), reader.context_norm(context), seen)
                if reader.gate is not None:
                    across = across * abs(jnp.tanh(reader.gate[...]))
                own = reader.block.self_weights(x + reader.cross_attend(x, context, seen), masks[name])
            crossed.append(jnp.concatenate([across[..., :start], jnp.zeros_like(own), across[..., start:]], -1))
            owned.append(jnp.pad(own, ((0, 0), (0, 0), (start, behind))))
            start += x.shape[1]
        first, then = (residual_shares(jnp.concatenate(rows, 1)) for rows in (crossed, owned))
        return jnp.einsum("bij,bjk->bik", then, first)
