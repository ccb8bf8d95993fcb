"""Fusion through a few bottleneck tokens that all modalities share."""

import functools
from collections.abc import Callable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import (
    Fusion,
    Intermediates,
    Masks,
    Streams,
    add_modality_embedding,
    concat_streams,
    modality_embedding,
)
from mmjax.fusion.resampler import broadcast_latents
from mmjax.layers.attention import AttentionPool, Block, check_heads
from mmjax.layers.linear import make_parameter
from mmjax.layers.norm import RMSNorm
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens


@chz.chz
class Bottleneck(Fusion):
    """Attention bottlenecks (Nagrani et al. 2021): [x_m; z_m] <- block_m([x_m; z]), z = mean of z_m.

    Modalities exchange information only through the latents z, from block `fusion_start` on; earlier blocks are
    separate. The mean is over the modalities that are present. From `fusion_start` on tokens attend to the latents, and
    these to everything, so that the cost grows linearly with the tokens. In the paper tokens also attend to their own
    modality: `self_attention`, whose cost grows with the square of one modality's tokens.
    """

    latents: int = chz.field(default=4, doc="bottleneck tokens")
    depth: int = chz.field(default=2, doc="blocks of every modality")
    fusion_start: int = chz.field(default=0, doc="the first block, counted from 0, that sees the bottleneck")
    heads: int = chz.field(default=4, doc="attention heads")
    self_attention: bool = chz.field(default=False, doc="tokens also attend to their own modality after `fusion_start`")

    @chz.validate
    def _some(self) -> None:
        if self.latents < 1:
            raise ValueError("latents must be 1 or more")
        if not 0 <= self.fusion_start < self.depth:
            raise ValueError(f"fusion_start={self.fusion_start} must be 0 or more and less than depth={self.depth}")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "BottleneckFusion":
        check_heads("model.fusion", self.heads, settings.width)
        return BottleneckFusion(self, modalities, settings, rngs)


class BottleneckBlock(Block):
    """A transformer block whose last tokens, the latents, see all tokens; the others see only these."""

    def __init__(self, latents: int, width: int, heads: int, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        super().__init__(width, heads, rate=rate, rules=rules, rngs=rngs)
        self.latents = latents

    def self_attend(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None) -> Float[Array, "B N D"]:
        first = x.shape[1] - self.latents
        tokens, latents = x[:, :first], x[:, first:]
        seen = None if mask is None else mask[:, first:]
        return jnp.concatenate([self.attention(tokens, latents, seen), self.attention(latents, x, mask)], 1)


class ModalityBlocks(nnx.Module):
    """One block of every modality, with or without the bottleneck."""

    def __init__(self, make: Callable[..., Block], modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        self.blocks = nnx.Dict(
            {name: make(rate=settings.dropout, rules=settings.rules, rngs=rngs) for name in modalities}
        )
        self.modalities = modalities

    def __call__(
        self,
        carry: tuple[Streams, Float[Array, "B L D"] | None],
        masks: Masks,
        present: Bool[Array, "B L"],
        key: jax.Array | None,
    ) -> tuple[Streams, Float[Array, "B L D"] | None]:
        streams, latents = carry
        keys = [None] * len(streams) if key is None else jax.random.split(key, len(streams))
        result, seen, weights = {}, [], []
        for name, block_key in zip(self.modalities, keys, strict=True):
            x, mask = streams[name], masks[name]
            if latents is None:
                result[name] = self.blocks[name](x, mask, block_key)
                continue
            both = self.blocks[name](jnp.concatenate([x, latents], 1), jnp.concatenate([mask, present], 1), block_key)
            result[name] = both[:, : x.shape[1]]
            seen.append(both[:, x.shape[1] :])
            weights.append(mask.any(1).astype(x.dtype)[:, None, None])
        if latents is not None:
            total = sum(weight * part for weight, part in zip(weights, seen, strict=True))
            latents = total / jnp.maximum(sum(weights), 1)
        return result, latents


class BottleneckFusion(nnx.Module):
    """See `Bottleneck`. The fused tokens are those of all modalities, then the latents."""

    def __init__(self, config: Bottleneck, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        init = jax.nn.initializers.normal(0.02)
        self.kind = modality_embedding(modalities, settings, rngs)
        self.latents = make_parameter(init, (config.latents, width), (None, None), rules=rules, rngs=rngs)

        def stack(block: Callable[..., Block], depth: int) -> Stack:
            def make(rngs: nnx.Rngs) -> ModalityBlocks:
                return ModalityBlocks(block, modalities, settings, rngs)

            return settings.stack(make, depth, rngs)

        whole = functools.partial(Block, width, config.heads)
        narrow = functools.partial(BottleneckBlock, config.latents, width, config.heads)
        self.apart = stack(whole, config.fusion_start) if config.fusion_start else None
        self.together = stack(whole if config.self_attention else narrow, config.depth - config.fusion_start)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.pool = AttentionPool(width, config.heads, rules=rules, rngs=rngs)
        self.modalities, self.rules = modalities, rules

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        keys = (None, None) if key is None else jax.random.split(key)
        values = add_modality_embedding(streams, self.kind, self.modalities)
        masks = {name: streams[name].mask for name in self.modalities}
        mask = concat_streams(masks, self.modalities)
        latents, present = broadcast_latents(
            self.latents[...].astype(values[self.modalities[0]].dtype), mask, self.rules
        )
        if self.apart is not None:
            (values, _), _ = self.apart((values, None), masks, present, key=keys[0])
        (values, latents), layers = self.together((values, latents), masks, present, key=keys[1])
        x = self.norm(jnp.concatenate([concat_streams(values, self.modalities), latents], 1))
        mask = jnp.concatenate([mask, present], 1)
        return Tokens(x, mask), self.pool(x, mask), {"layers": layers}
