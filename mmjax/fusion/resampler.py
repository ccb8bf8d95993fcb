"""Fusion by a fixed number of latents that attend to all tokens."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.fusion.base import Fusion, Intermediates, add_modality_embedding, concat_streams, modality_embedding
from mmjax.layers.attention import AttentionPool, CrossBlock, check_heads
from mmjax.layers.linear import make_parameter
from mmjax.layers.norm import RMSNorm
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens


@chz.chz
class Resampler(Fusion):
    """z <- block(z + attention(z, [x1; ...; xM])), `depth` times, from learned latents z.

    The Perceiver (Jaegle et al. 2021) as a resampler (Alayrac et al. 2022). The cost grows linearly with the tokens,
    and the fused tokens are the latents.
    """

    latents: int = chz.field(default=16, doc="number of latents, which become the fused tokens")
    depth: int = chz.field(default=2, doc="blocks, each with one cross-attention to the tokens")
    heads: int = chz.field(default=4, doc="attention heads")

    @chz.validate
    def _some(self) -> None:
        if self.latents < 1:
            raise ValueError("latents must be 1 or more")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "ResamplerFusion":
        check_heads("model.fusion", self.heads, settings.width)
        return ResamplerFusion(self, modalities, settings, rngs)


class ResamplerFusion(nnx.Module):
    """See `Resampler`."""

    def __init__(self, config: Resampler, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.kind = modality_embedding(modalities, settings, rngs)
        init = jax.nn.initializers.normal(1.0)
        self.latents = make_parameter(init, (config.latents, width), (None, None), rules=rules, rngs=rngs)
        self.stack = settings.stack(
            lambda rngs: CrossBlock(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs),
            config.depth,
            rngs,
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.pool = AttentionPool(width, config.heads, rules=rules, rngs=rngs)
        self.modalities, self.rules = modalities, rules

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        x = concat_streams(add_modality_embedding(streams, self.kind, self.modalities), self.modalities)
        mask = concat_streams({name: streams[name].mask for name in self.modalities}, self.modalities)
        latents, present = broadcast_latents(self.latents[...].astype(x.dtype), mask, self.rules)
        latents, layers = self.stack(latents, None, x, mask, key=key)
        latents = self.norm(latents)
        return Tokens(latents, present), self.pool(latents, present), {"layers": layers}


def broadcast_latents(latents: Float[Array, "L D"], mask: Array, rules: Rules) -> tuple[Float[Array, "B L D"], Array]:
    """The latents repeated for every example, and their mask Bool[B L].

    Latents are real where the example has any token.
    """
    count, width = latents.shape
    everywhere = jnp.broadcast_to(
        latents, (mask.shape[0], count, width), out_sharding=rules.out_sharding("batch", None, None)
    )
    present = mask.any(1)[:, None] & jnp.ones((count,), bool)
    return everywhere, present
