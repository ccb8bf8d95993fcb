"""Pooling heads of encoders: one vector for each example."""

from typing import Literal

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.attention import Attention, masked_mean
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import make_norm
from mmjax.layers.settings import Settings


@chz.chz
class Pool:
    """How an encoder pools its tokens: the class token, the last one, the mean, or by attention.

    "attention" is that of a learned query to the tokens, with an MLP after it (Zhai et al. 2022), as in SigLIP.
    """

    kind: Literal["first", "last", "mean", "attention"] = chz.field(
        default="mean", doc="first: the class token or first token; last: the last real token"
    )
    size: int | None = chz.field(default=None, doc="what the vector is projected to; None: it is not")
    bias: bool = chz.field(default=False, doc="the projection adds a bias")

    def build(self, heads: int, options: BlockOptions, settings: Settings, rngs: nnx.Rngs) -> "PoolHead":
        """Builds the head for tokens of the settings' width."""
        return PoolHead(self, heads, options, settings, rngs)


class PoolHead(nnx.Module):
    """Tokens -> one vector, projected where a size is given."""

    def __init__(self, config: Pool, heads: int, options: BlockOptions, settings: Settings, rngs: nnx.Rngs):
        width, rules = settings.width, settings.rules
        attention = config.kind == "attention"
        self.attention = AttentionHead(heads, options, settings, rngs) if attention else None
        self.projection = (
            None
            if config.size is None
            else Linear((width, config.size), ("embed", None), bias=config.bias, rules=rules, rngs=rngs)
        )
        self.kind, self.rules = config.kind, rules

    def __call__(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B E"]:
        if self.attention is not None:
            pooled = self.attention(x, mask)
        elif self.kind == "first":
            pooled = x[:, 0]
        elif self.kind == "mean":
            pooled = masked_mean(x, mask)
        else:
            last = jnp.arange(x.shape[1]) == mask.sum(1, keepdims=True) - 1
            pooled = jnp.einsum("bnd,bn->bd", x, last.astype(x.dtype))
        return pooled if self.projection is None else self.projection(pooled[:, None])[:, 0]


class AttentionHead(nnx.Module):
    """A learned query's attention to the tokens, then a residual MLP (Zhai et al. 2022)."""

    def __init__(self, heads: int, options: BlockOptions, settings: Settings, rngs: nnx.Rngs):
        width, rules = settings.width, settings.rules
        init = jax.nn.initializers.normal(width**-0.5)
        self.probe = make_parameter(init, (1, width), (None, None), rules=rules, rngs=rngs)
        self.attention = Attention(width, heads, options, rules=rules, rngs=rngs)
        self.norm = make_norm(options, width, rules=rules, rngs=rngs)
        self.mlp = MLP(width, options.hidden or 4 * width, options, rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B D"]:
        spec = self.rules.out_sharding("batch", None, None)
        shape = (x.shape[0], 1, x.shape[2])
        query = jnp.broadcast_to(self.probe[...].astype(x.dtype), shape, out_sharding=spec)
        pooled = self.attention(query, x, mask)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
