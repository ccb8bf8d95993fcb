"""A causal transformer that attends to a context: over whole sequences, or step by step with a cache."""

import functools

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.attention import Attention, KVCache, apply_gate, make_gate
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import dropout, make_norm
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens

# By layer, stacked: what each block remembers of the places so far, and of the context.
DecoderCache = tuple[KVCache, KVCache]


class DecoderBlock(nnx.Module):
    """Pre-norm causal self-attention, cross-attention and MLP (Vaswani et al. 2017).

    Rotary positions and grouped queries are the self-attention's alone. `gated` scales the cross-attention, see
    `make_gate`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        options: BlockOptions,
        *,
        context_width: int,
        gated: bool,
        rate: float,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        attention = functools.partial(Attention, width, heads, rules=rules, rngs=rngs)
        norm = functools.partial(make_norm, options, width, rules=rules, rngs=rngs)
        self.own_norm, self.own = norm(), attention(options)
        plain = chz.replace(options, rope=None, kv_heads=None)
        self.seen_norm, self.seen = norm(), attention(plain, context_width=context_width)
        self.mlp_norm, self.mlp = norm(), MLP(width, options.hidden or 4 * width, options, rules=rules, rngs=rngs)
        self.gate = make_gate(rules=rules, rngs=rngs) if gated else None
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M C"],
        mask: Bool[Array, "B M"],
        key: jax.Array | None,
    ) -> Float[Array, "B N D"]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + dropout(self.own(self.own_norm(x), causal=True), self.rate, keys[0])
        x = x + dropout(apply_gate(self.gate, self.seen(self.seen_norm(x), context, mask)), self.rate, keys[1])
        return x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[2])

    def step(
        self,
        x: Float[Array, "B 1 D"],
        position: Int[Array, ""],
        cache: KVCache,
        context: KVCache,
        mask: Bool[Array, "B M"],
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """One decoding step, with the cached keys and values of earlier tokens and of the context."""
        normed, positions = self.own_norm(x), position[None, None]
        places = jnp.arange(cache[0].shape[1])
        here = (places == position)[:, None, None]
        new = self.own.project_kv(normed, positions)
        cache = jax.tree.map(lambda old, new: jnp.where(here, new, old), cache, new)
        x = x + self.own.attend(normed, cache, (places <= position)[None], positions=positions)
        x = x + apply_gate(self.gate, self.seen.attend(self.seen_norm(x), context, mask))
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """Decoder blocks with cross-attention to a context, with a norm before and after them."""

    def __init__(
        self,
        depth: int,
        heads: int,
        settings: Settings,
        rngs: nnx.Rngs,
        *,
        options: BlockOptions,
        context_width: int,
        gated: bool,
    ):
        rules, width, rate = settings.rules, settings.width, settings.dropout
        make = functools.partial(DecoderBlock, width, heads, options, context_width=context_width, gated=gated)
        self.context_norm = make_norm(options, context_width, rules=rules, rngs=rngs)
        self.stack = settings.stack(lambda rngs: make(rate=rate, rules=rules, rngs=rngs), depth, rngs)
        self.norm = make_norm(options, width, rules=rules, rngs=rngs)
        self.shape, self.rules = (depth, options.kv_heads or heads, width // heads), rules

    def __call__(self, x: Float[Array, "B N D"], context: Tokens, key: jax.Array | None) -> Float[Array, "B N D"]:
        seen = self.context_norm(context.values).astype(x.dtype)
        return self.norm(self.stack(x, seen, context.mask, key=key)[0])

    def init_cache(self, context: Tokens, length: int, dtype: jnp.dtype) -> DecoderCache:
        """An empty cache for at most `length` positions."""
        depth, heads, head = self.shape
        batch = context.values.shape[0]
        spec = self.rules.out_sharding(None, "batch", None, "heads", None)
        empty = jnp.zeros((depth, batch, length, heads, head), dtype, out_sharding=spec)
        seen = self.context_norm(context.values).astype(dtype)
        _, of_context = self.stack.scan(lambda block, carry, _: (carry, block.seen.project_kv(seen)), None)
        return (empty, empty), of_context

    def step(
        self, x: Float[Array, "B 1 D"], position: Int[Array, ""], cache: DecoderCache, mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B 1 D"], DecoderCache]:
        """The output at one position, equal to that of a call on the whole prefix, and the new cache."""

        def run(block: DecoderBlock, x: Array, layer: DecoderCache) -> tuple[Array, KVCache]:
            return block.step(x, position, *layer, mask)

        x, own = self.stack.scan(run, x, cache)
        return self.norm(x), (own, cache[1])
