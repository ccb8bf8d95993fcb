"""Fusion by cross-attention: the flagship."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.errors import UserError
from mmjax.fusion.base import Fusion, Intermediates
from mmjax.layers.attention import Attention, AttentionPool, Block
from mmjax.layers.linear import make_parameter
from mmjax.layers.norm import Norm, dropout
from mmjax.layers.position import time_embedding
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens

Streams = dict[str, Float[Array, "B N D"]]


@chz.chz
class CrossAttention(Fusion):
    """Co-attention (Lu et al. 2019, ViLBERT).

    In every block each modality's stream attends to all the others', then to itself. Streams carry a learned embedding
    of their modality and, where tokens have a time, sines of the seconds on the example's clock. The summary is pooled
    by attention from the tokens of all streams.
    """

    depth: int = chz.field(default=2, doc="blocks of exchange")
    heads: int = chz.field(default=4, doc="attention heads")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "CrossAttentionFusion":
        if self.heads < 1 or settings.width % self.heads:
            raise UserError(
                f"model.fusion.heads={self.heads} does not divide model.width={settings.width}; choose a divisor of it"
            )
        return CrossAttentionFusion(self, modalities, settings, rngs)


class Exchange(nnx.Module):
    """One block of one stream: cross-attention to the other streams, then a transformer block on its own tokens."""

    def __init__(self, width: int, heads: int, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        self.norm = Norm(width, rules=rules, rngs=rngs)
        self.context_norm = Norm(width, rules=rules, rngs=rngs)
        self.cross = Attention(width, heads, rules=rules, rngs=rngs)
        self.block = Block(width, heads, rate=rate, rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B N D"], mask: Array, context: Float[Array, "B M D"], context_mask: Array, key
    ) -> Float[Array, "B N D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        seen = self.cross(self.norm(x), self.context_norm(context), context_mask)
        return self.block(x + dropout(seen, self.rate, keys[0]), mask, keys[1])


class ExchangeBlock(nnx.Module):
    """All streams' `Exchange`, each reading the others as they were before the block."""

    def __init__(
        self, modalities: tuple[str, ...], width: int, heads: int, *, rate: float, rules: Rules, rngs: nnx.Rngs
    ):
        self.streams = nnx.Dict(
            {name: Exchange(width, heads, rate=rate, rules=rules, rngs=rngs) for name in modalities}
        )
        self.modalities = modalities

    def __call__(self, streams: Streams, masks: dict[str, Array], key: jax.Array | None) -> Streams:
        keys = [None] * len(streams) if key is None else jax.random.split(key, len(streams))
        result = {}
        for name, stream_key in zip(self.modalities, keys, strict=True):
            others = [other for other in self.modalities if other != name]
            context = jnp.concatenate([streams[other] for other in others], 1)
            context_mask = jnp.concatenate([masks[other] for other in others], 1)
            result[name] = self.streams[name](streams[name], masks[name], context, context_mask, stream_key)
        return result


class CrossAttentionFusion(nnx.Module):
    """See `CrossAttention`. With a single modality it is a plain transformer over its tokens."""

    def __init__(self, config: CrossAttention, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width, rate = settings.rules, settings.width, settings.dropout
        init = jax.nn.initializers.normal(0.02)
        self.kind = make_parameter(init, (len(modalities), width), (None, None), rules=rules, rngs=rngs)

        def make(rngs: nnx.Rngs) -> nnx.Module:
            if len(modalities) == 1:
                return SingleBlock(modalities[0], Block(width, config.heads, rate=rate, rules=rules, rngs=rngs))
            return ExchangeBlock(modalities, width, config.heads, rate=rate, rules=rules, rngs=rngs)

        self.stack = Stack(make, config.depth, remat=settings.remat, unroll=settings.unroll, rngs=rngs)
        self.norm = Norm(width, rules=rules, rngs=rngs)
        self.pool = AttentionPool(width, config.heads, rules=rules, rngs=rngs)
        self.modalities = modalities

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        values, masks = {}, {name: streams[name].mask for name in self.modalities}
        for index, name in enumerate(self.modalities):
            tokens = streams[name]
            x = tokens.values + self.kind[index].astype(tokens.values.dtype)
            if tokens.time is not None:
                x = x + time_embedding(tokens.time, x.shape[-1]).astype(x.dtype)
            values[name] = x
        values, layers = self.stack(values, masks, key=key)
        x = self.norm(jnp.concatenate([values[name] for name in self.modalities], 1))
        mask = jnp.concatenate([masks[name] for name in self.modalities], 1)
        return Tokens(x, mask), self.pool(x, mask), {"layers": layers}


class SingleBlock(nnx.Module):
    """What is left of an exchange when there is nobody to exchange with."""

    def __init__(self, name: str, block: Block):
        self.name, self.block = name, block

    def __call__(self, streams: Streams, masks: dict[str, Array], key: jax.Array | None) -> Streams:
        return {self.name: self.block(streams[self.name], masks[self.name], key)}
