"""Multi-head attention over masked tokens, transformer blocks, and pooling by attention."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.layers.attention_kernels import attend, visible
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout, make_norm
from mmjax.layers.packed import has_segments, segment_positions
from mmjax.layers.position import rotate
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

    Of the options it reads the biases, the heads of keys and values (grouped-query attention, Ainslie et al. 2023) and
    the base of rotary positions. The context may have a width of its own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        options: BlockOptions = BlockOptions(),
        *,
        context_width: int | None = None,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        make = functools.partial(Linear, rules=rules, rngs=rngs)
        head, kv_heads = width // heads, options.kv_heads or heads
        if heads % kv_heads:
            raise UserError(f"kv_heads={kv_heads} does not divide heads={heads}; choose a divisor of it")
        if options.rope is not None and head % 2:
            raise UserError(f"rotary positions need an even width / heads, not {width} / {heads}")
        bias = options.bias or options.qkv_bias
        shapes = (
            (width, heads, bias),
            *[(context_width or width, kv_heads, each) for each in (bias and options.key_bias, bias)],
        )
        self.query, self.key, self.value = (
            make((inputs, count, head), ("embed", "heads", None), bias=each) for inputs, count, each in shapes
        )
        self.out = make((heads, head, width), ("heads", None, "embed"), inputs=2, bias=options.bias)
        self.groups, self.rope, self.rules = heads // kv_heads, options.rope, rules

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M C"] | None = None,
        mask: Mask | None = None,
        *,
        causal: bool = False,
    ) -> Float[Array, "B N D"]:
        positions = self.positions(x, mask)
        cache = self.project_kv(x if context is None else context, positions)
        return self.attend(x, cache, mask, causal=causal, positions=positions)

    def positions(self, x: Float[Array, "B N D"], mask: Mask | None) -> Int[Array, "#B N"] | None:
        """Where each token of a sequence is, from 0, for rotary positions; None without them."""
        if self.rope is None:
            return None
        return segment_positions(mask) if mask is not None and has_segments(mask) else jnp.arange(x.shape[1])[None]

    def weights(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M C"] | None = None,
        mask: Mask | None = None,
    ) -> Float[Array, "B N M"]:
        """The attention weight of each context token, averaged over heads; 0 where all are masked."""
        positions = self.positions(x, mask)
        query = self._query(x, positions)
        key = self._repeat(self.project_kv(x if context is None else context, positions)[0])
        scores = jnp.einsum("bnhk,bmhk->bhnm", query, key).astype(jnp.float32) * key.shape[-1] ** -0.5
        if mask is None:
            return jax.nn.softmax(scores).mean(1)
        seen = visible(mask[:, None, None, :])
        weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min)).mean(1)
        return jnp.where(seen[:, 0], weights, 0)

    def project_kv(self, context: Float[Array, "B M C"], positions: Int[Array, "#B M"] | None = None) -> KVCache:
        """Projects a context to keys and values, which a decoder can cache."""
        return self._rotate(self.key(context), positions), self.value(context)

    def _query(self, x: Float[Array, "B N D"], positions: Int[Array, "#B N"] | None) -> Float[Array, "B N H K"]:
        return self._rotate(self.query(x), positions)

    def _rotate(self, x: Float[Array, "B N H K"], positions: Int[Array, "#B N"] | None) -> Float[Array, "B N H K"]:
        return x if positions is None or self.rope is None else rotate(x, positions, self.rope)

    def _repeat(self, x: Float[Array, "B M G K"]) -> Float[Array, "B M H K"]:
        """Keys or values with one head for each of the queries'."""
        if self.groups == 1:
            return x
        spec = self.rules.out_sharding("batch", None, "heads", None)
        shape = (*x.shape[:2], x.shape[2] * self.groups, x.shape[3])
        return jax.lax.reshape(jnp.stack([x] * self.groups, 3), shape, out_sharding=spec)

    def attend(
        self,
        x: Float[Array, "B N D"],
        cache: KVCache,
        mask: Mask | None = None,
        *,
        causal: bool = False,
        positions: Int[Array, "#B N"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Attention to cached keys and values; a causal one ignores later positions.

        `positions` are those of x, and given where the keys were rotated by theirs.
        """
        query, key, value = self._query(x, positions), *map(self._repeat, cache)
        if mask is None:
            return self.out(attend(query, key, value, None, causal))
        y = self.out(attend(query, key, value, mask[:, None, None, :], causal))
        return jnp.where((mask > 0 if has_segments(mask) else mask.any(1)[:, None])[..., None], y, 0)


class Block(nnx.Module):
    """Transformer block: self-attention, then an MLP, each residual.

    Pre-norm (Xiong et al. 2020) unless the options say post-norm (Vaswani et al. 2017).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        options: BlockOptions = BlockOptions(),
        *,
        hidden: int | None = None,
        rate: float = 0.0,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = make_norm(options, width, rules=rules, rngs=rngs)
        self.attention = Attention(width, heads, options, rules=rules, rngs=rngs)
        self.mlp_norm = make_norm(options, width, rules=rules, rngs=rngs)
        self.mlp = MLP(width, hidden or options.hidden or 4 * width, options, rules=rules, rngs=rngs)
        scale, make = options.layer_scale, functools.partial(make_parameter, rules=rules, rngs=rngs)
        init = None if scale is None else jax.nn.initializers.constant(scale)
        self.attention_scale, self.mlp_scale = (
            None if init is None else make(init, (width,), (None,)) for _ in range(2)
        )
        self.rate, self.post_norm, self.causal = rate, options.post_norm, options.causal

    def __call__(self, x: Float[Array, "B N D"], mask: Mask | None, key: jax.Array | None) -> Float[Array, "B N D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        if self.post_norm:
            x = self.attention_norm(x + self._branch(self.self_attend(x, mask), self.attention_scale, keys[0]))
            return self.mlp_norm(x + self._branch(self.mlp(x), self.mlp_scale, keys[1]))
        x = x + self._branch(self.self_attend(self.attention_norm(x), mask), self.attention_scale, keys[0])
        return x + self._branch(self.mlp(self.mlp_norm(x)), self.mlp_scale, keys[1])

    def _branch(
        self, x: Float[Array, "B N D"], scale: nnx.Param | None, key: jax.Array | None
    ) -> Float[Array, "B N D"]:
        return dropout(x if scale is None else x * scale[...].astype(x.dtype), self.rate, key)

    def self_attend(self, x: Float[Array, "B N D"], mask: Mask | None) -> Float[Array, "B N D"]:
        """Self-attention without norm or residual."""
        return self.attention(x, mask=mask, causal=self.causal)

    def self_weights(self, x: Float[Array, "B N D"], mask: Mask) -> Float[Array, "B N N"]:
        """The weights of the self-attention, averaged over heads."""
        return self.attention.weights(x if self.post_norm else self.attention_norm(x), mask=mask)


class CrossBlock(nnx.Module):
    """Residual cross-attention to a context, then a transformer block (ViLBERT, Lu et al. 2019).

    `gated` scales the cross-attention by tanh(a) with a learned a, 0 at first, so that the block starts as if there
    were no context (Alayrac et al. 2022, Flamingo).
    """

    def __init__(self, width: int, heads: int, *, gated: bool = False, rate: float = 0.0, rules: Rules, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.context_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.cross = Attention(width, heads, rules=rules, rngs=rngs)
        self.gate = make_gate(rules=rules, rngs=rngs) if gated else None
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
        return apply_gate(self.gate, self.cross(self.norm(x), self.context_norm(context), mask))


def make_gate(*, rules: Rules, rngs: nnx.Rngs) -> nnx.Param:
    """A learned number whose tanh scales a branch, 0 at first (Alayrac et al. 2022, Flamingo)."""
    return make_parameter(jax.nn.initializers.zeros, (), (), rules=rules, rngs=rngs)


def apply_gate(gate: nnx.Param | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x scaled by tanh of the gate; x itself without one."""
    return x if gate is None else x * jnp.tanh(gate[...]).astype(x.dtype)


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


def check_heads(name: str, heads: int, width: int, key: str = "model.width") -> None:
    """Raises UserError, naming the settings `name`.heads and `key`, unless `heads` divides the width."""
    if heads < 1 or width % heads:
        raise UserError(f"{name}.heads={heads} does not divide {key}={width}; choose a divisor of it")


def masked_mean(x: Float[Array, "B N D"], mask: Bool[Array, "B N"]) -> Float[Array, "B D"]:
    """The mean of the tokens whose mask is true, summed in float32; zero where all are masked."""
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("bnd,bn->bd", jnp.where(mask[..., None], x, 0).astype(jnp.float32), weights)
    return (total / jnp.maximum(weights.sum(1, keepdims=True), 1)).astype(x.dtype)
