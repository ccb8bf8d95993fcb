"""From a step of a decoder to whole sequences: greedy, drawn at random, or the best of several kept in view."""

from collections.abc import Callable
from typing import Any

import chz
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.sharding.rules import Rules
from mmjax.types import END, PADDING

IMPOSSIBLE = -1e9
MOST_BEAMS = 1024

# (token before, its place, what is remembered) -> logits of the token at that place, what is remembered then.
Step = Callable[[Int[Array, "B"], Int[Array, ""], Any], tuple[Float[Array, "B V"], Any]]


@chz.chz
class Decoding:
    """How sequences are decoded. Each is the likeliest at every place unless something else is said."""

    temperature: float = chz.field(default=0.0, doc="logits are divided by it and drawn from; 0: the likeliest token")
    top_k: int | None = chz.field(default=None, doc="draw from so many likeliest tokens (Fan et al. 2018)")
    top_p: float | None = chz.field(
        default=None, doc="draw from the fewest tokens with so much probability (Holtzman et al. 2020)"
    )
    beams: int = chz.field(default=1, doc="beginnings that are kept in view; more than 1: beam search")
    length_penalty: float = chz.field(default=0.6, doc="a of ((5 + N) / 6)^a that divides the log-likelihood of beams")

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
            raise ValueError("beams are for the likeliest sequence: leave temperature at 0, or beams at 1")


def decode(
    step: Step, memories: Any, batch: int, length: int, key: jax.Array | None, how: Decoding, rules: Rules
) -> Int[Array, "B N"]:
    """Sequences of `batch` examples, up to `length` tokens each, the end and then padding behind what is said.

    `memories` are those before the first place. Without a key nothing is left to chance, whatever the temperature.
    """
    if key is None:
        how = chz.replace(how, temperature=0.0)
    if how.beams > 1:
        return beam_search(step, memories, batch, length, how, rules)

    def advance(carry: tuple) -> tuple:
        place, ids, last, memories = carry
        logits, memories = step(last, place, memories)
        draw = None if key is None else jax.random.fold_in(key, place)
        new = jnp.where(_ended(last, place), PADDING, pick(logits, draw, how))
        ids = jnp.where(jnp.arange(length) == place, new[:, None], ids)
        return place + 1, ids, new, memories

    def unfinished(carry: tuple) -> Array:
        place, _, last, _ = carry
        return (place < length) & ~_ended(last, place).all()

    ids = jnp.zeros((batch, length), jnp.int32, out_sharding=rules.spec("batch", None))
    last = jnp.zeros((batch,), jnp.int32, out_sharding=rules.spec("batch"))
    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), ids, last, memories))[1]


def pick(logits: Float[Array, "B V"], key: jax.Array | None, how: Decoding) -> Int[Array, "B"]:
    """The next token of every example."""
    if how.temperature == 0 or key is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = narrow(logits / how.temperature, how.top_k, how.top_p)
    noise = jax.random.gumbel(key, logits.shape, logits.dtype, out_sharding=jax.typeof(logits).sharding)
    return (logits + noise).argmax(-1).astype(jnp.int32)


def narrow(logits: Float[Array, "B V"], top_k: int | None, top_p: float | None) -> Float[Array, "B V"]:
    """Logits with tokens that must not be drawn made impossible; of equal ones all stay."""
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


def beam_search(step: Step, memories: Any, batch: int, length: int, how: Decoding, rules: Rules) -> Int[Array, "B N"]:
    """The best sequence found of each example, by log-likelihood over a penalty of its length (Wu et al. 2016, eq. 14).

    At every place the `beams` likeliest continuations of all beams are kept; one that has ended stays as it is.
    """
    beams = how.beams
    # In memories the batch comes behind the layers, and the beams then come behind the batch.
    everyone = jax.vmap(step, in_axes=(1, None, 2), out_axes=(1, 2))
    memories = jax.tree.map(lambda leaf: jnp.stack([leaf] * beams, 2), memories)

    def advance(carry: tuple) -> tuple:
        place, ids, last, scores, memories = carry
        logits, memories = everyone(last, place, memories)
        likely = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
        size = likely.shape[-1]
        resting = jnp.where(jnp.arange(size) == PADDING, 0.0, IMPOSSIBLE)
        likely = jnp.where(_ended(last, place)[..., None], resting, likely)
        flat = rules.spec("batch", None)
        total = jax.lax.reshape(scores[..., None] + likely, (batch, beams * size), out_sharding=flat)
        scores, best = jax.lax.top_k(total, beams)
        parents, new = best // size, (best % size).astype(jnp.int32)
        choose = jax.nn.one_hot(parents, beams, dtype=jnp.float32)
        memories = jax.tree.map(lambda leaf: _follow(choose, leaf), memories)
        ids = jnp.einsum("bpq,bqn->bpn", choose, ids.astype(jnp.float32)).astype(jnp.int32)
        ids = jnp.where(jnp.arange(length) == place, new[..., None], ids)
        return place + 1, ids, new, scores, memories

    def unfinished(carry: tuple) -> Array:
        place, _, last, *_ = carry
        return (place < length) & ~_ended(last, place).all()

    ids = jnp.zeros((batch, beams, length), jnp.int32, out_sharding=rules.spec("batch", None, None))
    last = jnp.zeros((batch, beams), jnp.int32, out_sharding=rules.spec("batch", None))
    # At first all beams are alike: one of them counts.
    scores = jnp.where(jnp.arange(beams) == 0, jnp.zeros_like(last, jnp.float32), IMPOSSIBLE)
    _, ids, _, scores, _ = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), ids, last, scores, memories))
    lengths = (ids != PADDING).sum(-1)
    ranked = scores / ((5 + lengths) / 6) ** how.length_penalty
    best = jax.nn.one_hot(ranked.argmax(-1), beams, dtype=jnp.float32)
    return jnp.einsum("bp,bpn->bn", best, ids.astype(jnp.float32)).astype(jnp.int32)


def _follow(choose: Float[Array, "B P Q"], leaf: Float[Array, "L B Q ..."]) -> Float[Array, "L B P ..."]:
    """What each new beam remembers: that of the beam it goes on from."""
    return jnp.einsum("bpq,lbq...->lbp...", choose.astype(leaf.dtype), leaf)


def _ended(last: Int[Array, "..."], place: Int[Array, ""]) -> Array:
    """Whether the token before is the end, or padding that does not begin the sequence."""
    return (place > 0) & ((last == END) | (last == PADDING))
