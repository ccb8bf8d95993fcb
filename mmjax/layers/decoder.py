"""A causal transformer that reads a context, over whole sequences and, with what it remembers, step by step."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.attention import Attention, KVCache
from mmjax.layers.mlp import MLP
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens

# By layer, stacked: what each block remembers of the places so far, and of the context.
Memories = tuple[KVCache, KVCache]


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to a context, a perceptron, with norms before (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        attention = functools.partial(Attention, width, heads, rules=rules, rngs=rngs)
        norm = functools.partial(RMSNorm, width, rules=rules, rngs=rngs)
        self.own_norm, self.own = norm(), attention()
        self.seen_norm, self.seen = norm(), attention()
        self.mlp_norm, self.mlp = norm(), MLP(width, 4 * width, rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M D"],
        mask: Bool[Array, "B M"],
        key: jax.Array | None,
    ) -> Float[Array, "B N D"]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = x + dropout(self.own(self.own_norm(x), causal=True), self.rate, keys[0])
        x = x + dropout(self.seen(self.seen_norm(x), context, mask), self.rate, keys[1])
        return x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[2])

    def step(
        self,
        x: Float[Array, "B 1 D"],
        place: Int[Array, ""],
        past: KVCache,
        context: KVCache,
        mask: Bool[Array, "B M"],
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """The same for the token at one place, given what is remembered of those before it and of the context."""
        normed = self.own_norm(x)
        places = jnp.arange(past[0].shape[1])
        here = (places == place)[:, None, None]
        past = jax.tree.map(lambda old, new: jnp.where(here, new, old), past, self.own.project_kv(normed))
        x = x + self.own.attend(normed, past, (places <= place)[None])
        x = x + self.seen.attend(self.seen_norm(x), context, mask)
        return x + self.mlp(self.mlp_norm(x)), past


class Decoder(nnx.Module):
    """Decoder blocks that read a context's tokens, and a norm before and behind them."""

    def __init__(self, depth: int, heads: int, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width

        def make(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(width, heads, rate=settings.dropout, rules=rules, rngs=rngs)

        self.context_norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.stack = Stack(make, depth, remat=settings.remat, unroll=settings.unroll, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.shape, self.rules = (depth, heads, width // heads), rules

    def __call__(self, x: Float[Array, "B N D"], context: Tokens, key: jax.Array | None) -> Float[Array, "B N D"]:
        seen = self.context_norm(context.values).astype(x.dtype)
        return self.norm(self.stack(x, seen, context.mask, key=key)[0])

    def begin(self, context: Tokens, length: int, dtype: jnp.dtype) -> Memories:
        """Memories before the first of at most `length` places."""
        depth, heads, head = self.shape
        batch = context.values.shape[0]
        spec = self.rules.spec(None, "batch", None, "heads", None)
        empty = jnp.zeros((depth, batch, length, heads, head), dtype, out_sharding=spec)
        seen = self.context_norm(context.values).astype(dtype)
        _, of_context = self.stack.thread(lambda block, carry, _: (carry, block.seen.project_kv(seen)), None)
        return (empty, empty), of_context

    def step(
        self, x: Float[Array, "B 1 D"], place: Int[Array, ""], memories: Memories, mask: Bool[Array, "B M"]
    ) -> tuple[Float[Array, "B 1 D"], Memories]:
        """What a call over all places up to this one has at this one, and the memories with it."""
        past, context = memories

        def run(block: DecoderBlock, x: Array, own: Memories) -> tuple[Array, KVCache]:
            return block.step(x, place, *own, mask)

        x, past = self.stack.thread(run, x, (past, context))
        return self.norm(x), (past, context)
