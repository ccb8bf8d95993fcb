"""Decoding of sequences: greedy, sampling, or beam search."""

from collections.abc import Callable
from typing import Any

import chz
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.sharding.rules import Rules
from mmjax.types import END, PADDING, DimSize

IMPOSSIBLE = -1e9
MOST_BEAMS = 1024

# (previous token, position, cache) -> logits of the token at that position, new cache.
Step = Callable[[Int[Array, "B"], Int[Array, ""], Any], tuple[Float[Array, "B V"], Any]]


@chz.chz
class Decoding:
    """How sequences are decoded; greedy by default."""

    temperature: float = chz.field(default=0.0, doc="divides the logits before sampling; 0: greedy decoding")
    top_k: int | None = chz.field(default=None, doc="sample from the k likeliest tokens (Fan et al. 2018)")
    top_p: float | None = chz.field(
        default=None, doc="sample from the fewest tokens with this total probability (Holtzman et al. 2020)"
    )
    beams: int = chz.field(default=1, doc="number of beams; more than 1: beam search")
    length_penalty: float = chz.field(default=0.6, doc="exponent a of the penalty ((5 + N) / 6)^a of beam search")

    @chz.validate
    def _possible(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")
        if not 1 <= self.beams <= MOST_BEAMS:
            raise ValueError(f"beams={self.beams} must lie between 1 and {MOST_BEAMS}")
        if self.temperature > 0 and self.beams > 1:
            raise ValueError("beam search does not sample: set temperature=0 or beams=1")


def decode(
    step: Step, cache: Any, batch: DimSize, length: int, key: jax.Array | None, decoding: Decoding, rules: Rules
) -> Int[Array, "B N"]:
    """Sequences of `batch` examples, up to `length` tokens each, with the end token and then padding.

    `cache` is the decoder's empty cache. Without a key decoding is greedy, whatever the temperature.
    """
    if key is None:
        decoding = chz.replace(decoding, temperature=0.0)
    if decoding.beams > 1:
        return beam_search(step, cache, batch, length, decoding, rules)

    def advance(carry: tuple) -> tuple:
        position, ids, last, cache = carry
        logits, cache = step(last, position, cache)
        draw = None if key is None else jax.random.fold_in(key, position)
        new = jnp.where(_ended(last, position), PADDING, sample_token(logits, draw, decoding))
        ids = jnp.where(jnp.arange(length) == position, new[:, None], ids)
        return position + 1, ids, new, cache

    def unfinished(carry: tuple) -> Array:
        position, _, last, _ = carry
        return (position < length) & ~_ended(last, position).all()

    ids = jnp.zeros((batch, length), jnp.int32, out_sharding=rules.out_sharding("batch", None))
    last = jnp.zeros((batch,), jnp.int32, out_sharding=rules.out_sharding("batch"))
    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), ids, last, cache))[1]


def sample_token(logits: Float[Array, "B V"], key: jax.Array | None, decoding: Decoding) -> Int[Array, "B"]:
    """The next token of every example."""
    if decoding.temperature == 0 or key is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = filter_logits(logits / decoding.temperature, decoding.top_k, decoding.top_p)
    noise = jax.random.gumbel(key, logits.shape, logits.dtype, out_sharding=jax.typeof(logits).sharding)
    return (logits + noise).argmax(-1).astype(jnp.int32)


def filter_logits(logits: Float[Array, "B V"], top_k: int | None, top_p: float | None) -> Float[Array, "B V"]:
    """Logits with the tokens outside top-k and top-p made impossible; ties are kept."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, IMPOSSIBLE, logits)
    if top_p is not None and top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        least = jnp.where(before < top_p, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, IMPOSSIBLE, logits)
    return logits


def beam_search(
    step: Step, cache: Any, batch: DimSize, length: int, decoding: Decoding, rules: Rules
) -> Int[Array, "B N"]:
    """The best sequence of each example, by length-penalised log-likelihood (Wu et al. 2016, eq. 14).

    At every position the `beams` likeliest continuations of all beams are kept; a finished beam does not change.
    """
    beams = decoding.beams
    # In memories the batch comes behind the layers, and the beams then come behind the batch.
    everyone = jax.vmap(step, in_axes=(1, None, 2), out_axes=(1, 2))
    cache = jax.tree.map(lambda leaf: jnp.stack([leaf] * beams, 2), cache)

    def advance(carry: tuple) -> tuple:
        position, ids, last, scores, cache = carry
        logits, cache = everyone(last, position, cache)
        likely = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
        size = likely.shape[-1]
        resting = jnp.where(jnp.arange(size) == PADDING, 0.0, IMPOSSIBLE)
        likely = jnp.where(_ended(last, position)[..., None], resting, likely)
        flat = rules.out_sharding("batch", None)
        total = jax.lax.reshape(scores[..., None] + likely, (batch, beams * size), out_sharding=flat)
        scores, best = jax.lax.top_k(total, beams)
        parents, new = best // size, (best % size).astype(jnp.int32)
        choose = jax.nn.one_hot(parents, beams, dtype=jnp.float32)
        cache = jax.tree.map(lambda leaf: _follow(choose, leaf), cache)
        ids = jnp.einsum("bpq,bqn->bpn", choose, ids.astype(jnp.float32)).astype(jnp.int32)
        ids = jnp.where(jnp.arange(length) == position, new[..., None], ids)
        return position + 1, ids, new, scores, cache

    def unfinished(carry: tuple) -> Array:
        position, _, last, *_ = carry
        return (position < length) & ~_ended(last, position).all()

    ids = jnp.zeros((batch, beams, length), jnp.int32, out_sharding=rules.out_sharding("batch", None, None))
    last = jnp.zeros((batch, beams), jnp.int32, out_sharding=rules.out_sharding("batch", None))
    # At first all beams are alike: one of them counts.
    scores = jnp.where(jnp.arange(beams) == 0, jnp.zeros_like(last, jnp.float32), IMPOSSIBLE)
    _, ids, _, scores, _ = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), ids, last, scores, cache))
    lengths = (ids != PADDING).sum(-1)
    ranked = scores / ((5 + lengths) / 6) ** decoding.length_penalty
    best = jax.nn.one_hot(ranked.argmax(-1), beams, dtype=jnp.float32)
    return jnp.einsum("bp,bpn->bn", best, ids.astype(jnp.float32)).astype(jnp.int32)


def _follow(choose: Float[Array, "B P Q"], leaf: Float[Array, "L B Q ..."]) -> Float[Array, "L B P ..."]:
    """The cache of each new beam: that of the beam it continues."""
    return jnp.einsum("bpq,lbq...->lbp...", choose.astype(leaf.dtype), leaf)


def _ended(last: Int[Array, "..."], position: Int[Array, ""]) -> Array:
    """Whether the previous token is the end, or padding that does not start the sequence."""
    return (position > 0) & ((last == END) | (last == PADDING))
