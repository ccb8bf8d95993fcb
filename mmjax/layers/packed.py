"""Packed sequences: several examples' in a row, kept apart by segment ids."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, Shaped

from mmjax.layers.linear import look_up
from mmjax.sharding.rules import Rules, shard_map
from mmjax.types import Batch, Packed, Tokens


def has_segments(mask: Array) -> bool:
    """Whether a mask is segment ids, Int[B N] with 0 for padding, and not Bool[B N]."""
    return jnp.issubdtype(mask.dtype, jnp.integer)


def segment_starts(segments: Int[Array, "B N"]) -> Bool[Array, "B N"]:
    """Where a segment or a run of padding begins."""
    return jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1)


def segment_positions(segments: Int[Array, "B N"]) -> Int[Array, "B N"]:
    """The place of every position within its own segment, from 0."""
    places = jnp.arange(segments.shape[1]) + jnp.zeros_like(segments)
    return places - jax.lax.cummax(jnp.where(segment_starts(segments), places, 0), axis=1)


def select_positions(position: nnx.Param, mask: Array, dtype: jnp.dtype, rules: Rules) -> Array:
    """The learned positions of a sequence's tokens: [N D], or [B N D] where the mask is segments."""
    table = position[...].astype(dtype)
    return look_up(table, segment_positions(mask), rules) if has_segments(mask) else table


def unpack(
    x: Shaped[Array, "R L ..."], packed: Packed, rules: Rules
) -> tuple[Shaped[Array, "B N ..."], Bool[Array, "B N"]]:
    """The sequences of rows as one row an example, padded with zeros, and their mask.

    The rows may have been shortened by a whole stride since they were packed. Each device has the rows of its examples,
    so nothing is sent.
    """
    stride = packed.row_length // x.shape[1]
    count = -(-packed.longest // stride)
    rest = [None] * (x.ndim - 1)

    def local(x: Array, rows: Array, starts: Array, lengths: Array) -> tuple[Array, Array]:
        # A part of the batch is a number of consecutive rows, and of consecutive examples.
        parts = x.shape[0] * packed.parts // packed.row_count
        flat = x.reshape(parts, -1, *x.shape[2:])
        first = (rows * x.shape[1] + starts // stride).reshape(parts, -1, 1)
        real = jnp.arange(count) < -(-lengths // stride)[:, None]
        places = jnp.minimum(first + jnp.arange(count), flat.shape[1] - 1)
        found = jax.vmap(lambda part, at: part.at[at].get())(flat, places)
        found = found.reshape(-1, count, *x.shape[2:])
        return jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), found, 0), real

    split, one = rules.spec("batch", *rest), rules.spec("batch")
    function = shard_map(local, in_specs=(split, one, one, one), out_specs=(split, rules.spec("batch", None)))
    return function(x, packed.rows, packed.starts, packed.lengths)


def unpack_tokens(tokens: Tokens, packed: Packed, rules: Rules) -> Tokens:
    """The tokens of packed rows as one row an example."""
    values, mask = unpack(tokens.values, packed, rules)
    return Tokens(values, mask, None if tokens.time is None else unpack(tokens.time, packed, rules)[0])


def unpack_batch(batch: Batch, rules: Rules) -> Batch:
    """The batch with every packed feature padded, one row an example."""
    if not batch.packed:
        return batch
    values, mask = dict(batch.values), dict(batch.mask)
    for name, packed in batch.packed.items():
        values[name], mask[name] = unpack(batch.values[name], packed, rules)
    return dataclasses.replace(batch, values=values, mask=mask, packed={})
