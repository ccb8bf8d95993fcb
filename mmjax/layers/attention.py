"""Multi-head attention over masked tokens, and pooling by attention."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.layers.attention_kernels import attend, visible
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.packed import has_segments
from mmjax.sharding.rules import Rules

# Keys and values of M context tokens, Float[B M H K] each.
KVCache = tuple[Array, Array]
# Which context tokens count, or the segments that they belong to.
Mask = Bool[Array, "#B S"] | Int[Array, "#B S"]


class Attention(nnx.Module):
    """Multi-head attention from x to a context (default: x) (Vaswani et al. 2017, section 3.2).

    The softmax is in float32. Context tokens with a false mask are ignored; where a whole context is masked the result
    is zero. In self-attention the mask may be segment ids of packed sequences: a token then attends to its own segment,
    and the result of padding, of id 0, is zero.
    """

    def __init__(self, width: int, heads: int, *, rules: Rules, rngs: nnx.Rngs):
        make = functools.partial(Linear, rules=rules, rngs=rngs)
        head = width // heads
        self.query, self.key, self.value = (make((width, heads, head), ("embed", "heads", None)) for _ in range(3))
        self.out = make((heads, head, width), ("heads", None, "embed"), inputs=2)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M D"] | None = None,
        mask: Mask | None = None,
        *,
        causal: bool = False,
    ) -> Float[Array, "B N D"]:
        return self.attend(x, self.project_kv(x if context is None else context), mask, causal=causal)

    def weights(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M D"] | None = None,
        mask: Mask | None = None,
    ) -> Float[Array, "B N M"]:
        """The attention weight of each context token, averaged over heads; 0 where all are masked."""
        query, key = self.query(x), self.key(x if context is None else context)
        scores = jnp.einsum("bnhk,bmhk->bhnm", query, key).astype(jnp.float32) * key.shape[-1] ** -0.5
        if mask is None:
            return jax.nn.softmax(scores).mean(1)
        seen = visible(mask[:, None, None, :])
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min)).mean(1)
        return jnp.where(seen[:, 0], weights, 0)

    def project_kv(self, context: Float[Array, "B M D"]) -> KVCache:
        """Projects a context to keys and values, which a decoder can cache."""
        return self.key(context), self.value(context)

    def attend(
        self,
        x: Float[Array, "B N D"],
        cache: KVCache,
        mask: Mask | None = None,
        *,
        causal: bool = False,
    ) -> Float[Array, "B N D"]:
        """Attention to cached keys and values; a causal one ignores later positions."""
        if mask is None:
            return self.out(attend(self.query(x), *cache, None, causal))
        y = self.out(attend(self.query(x), *cache, mask[:, None, None, :], causal))
        return jnp.where((mask > 0 if has_segments(mask) else mask.any(1)[:, None])[..., None], y, 0)


class Block(nnx.Module):
    """Pre-norm transformer block: self-attention, then an MLP, each residual (Xiong et al. 2020)."""

    def __init__(
        self, width: int, heads: int, *, hidden: int | None = None, rate: float = 0.0, rules: Rules, rngs: nnx.Rngs
    ):
        self.attention_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.attention = Attention(width, heads, rules=rules, rngs=rngs)
        self.mlp_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.mlp = MLP(width, hidden or 4 * width, rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Float[Array, "B N D"], mask: Mask | None, key: jax.Array | None) -> Float[Array, "B N D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.self_attend(self.attention_norm(x), mask), self.rate, keys[0])
        return x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[1])

    def self_attend(self, x: Float[Array, "B N D"], mask: Mask | None) -> Float[Array, "B N D"]:
        """Self-attention without norm or residual."""
        return self.attention(x, mask=mask)

    def self_weights(self, x: Float[Array, "B N D"], mask: Mask) -> Float[Array, "B N N"]:
        """The weights of the self-attention, averaged over heads."""
        return self.attention.weights(self.attention_norm(x), mask=mask)


class CrossBlock(nnx.Module):
    """Residual cross-attention to a context, then a transformer block (ViLBERT, Lu et al. 2019).

    `gated` scales the cross-attention by tanh(a) with a learned a, 0 at first, so that the block starts as if there
    were no context (Alayrac et al. 2022, Flamingo).
    """

    def __init__(self, width: int, heads: int, *, gated: bool = False, rate: float = 0.0, rules: Rules, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.context_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.cross = Attention(width, heads, rules=rules, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.gate = make_parameter(zeros, (), (), rules=rules, rngs=rngs) if gated else None
        self.block = Block(width, heads, rate=rate, rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None,
        context: Float[Array, "B M D"],
        context_mask: Bool[Array, "B M"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B N D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        return self.block(x + dropout(self.cross_attend(x, context, context_mask), self.rate, keys[0]), mask, keys[1])

    def cross_attend(
        self, x: Float[Array, "B N D"], context: Float[Array, "B M D"], mask: Bool[Array, "B M"] | None
    ) -> Float[Array, "B N D"]:
        """Cross-attention to the context, before the residual sum."""
        seen = self.cross(self.norm(x), self.context_norm(context), mask)
        return seen if self.gate is None else seen * jnp.tanh(self.gate[...]).astype(seen.dtype)


class AttentionPool(nnx.Module):
    """One vector per example: a learned query attends to the tokens (Zhai et al. 2022)."""

    def __init__(self, width: int, heads: int, *, rules: Rules, rngs: nnx.Rngs):
        self.probe = make_parameter(jax.nn.initializers.normal(1.0), (1, width), (None, None), rules=rules, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.attention = Attention(width, heads, rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B D"]:
        return self.attention(self._query(x), self.norm(x), mask)[:, 0]

    def weights(self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B N"]:
        """The weight of each token in the pooled vector."""
        return self.attention.weights(self._query(x), self.norm(x), mask)[:, 0]

    def _query(self, x: Float[Array, "B N D"]) -> Float[Array, "B 1 D"]:
        spec = self.rules.out_sharding("batch", None, None)
        return jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]), out_sharding=spec)


def check_heads(name: str, heads: int, width: int) -> None:
    """Raises UserError, naming the setting `name`.heads, unless `heads` divides the width."""
    if heads < 1 or width % heads:
        raise UserError(f"{name}.heads={heads} does not divide model.width={width}; choose a divisor of it")


def masked_mean(x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B D"]:
    """The mean of the tokens whose mask is true, summed in float32; zero where all are masked."""
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("bnd,bn->bd", jnp.where(mask[..., None], x, 0).astype(jnp.float32), weights)
    return (total / jnp.maximum(weights.sum(1, keepdims=True), 1)).astype(x.dtype)
