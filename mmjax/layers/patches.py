"""Cutting grids and sequences into patches while the batch stays sharded."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding.rules import Rules


def reshape(x: Array, *shape: int, rules: Rules) -> Array:
    """Reshapes x[B ...] to [B *shape] and keeps the batch sharded.

    A reshape beside a sharded dimension needs the output sharding stated.
    """
    return jax.lax.reshape(x, (x.shape[0], *shape), out_sharding=rules.out_sharding("batch", *[None] * len(shape)))


def patchify(x: Array, side: int, *, rules: Rules) -> Array:
    """Images [B H W C] as square patches [B (H W / side^2) (side^2 C)], row by row."""
    _, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = reshape(x, rows, side, columns, side, channels, rules=rules).transpose(0, 1, 3, 2, 4, 5)
    return reshape(x, rows * columns, side * side * channels, rules=rules)


def group_sequence(x: Array, length: int, *, rules: Rules) -> Array:
    """Sequences [B T ...] as groups [B T/length length ...] of consecutive entries.

    T must be a multiple of the length.
    """
    return reshape(x, x.shape[1] // length, length, *x.shape[2:], rules=rules)


def pad_to_multiple(
    x: Float[Array, "B T C"], mask: Bool[Array, "B T"] | Int[Array, "B T"], length: int
) -> tuple[Array, Array]:
    """Pads a sequence and its mask, or segments, to a multiple of `length`, with zeros where masked.

    So a masked entry's value cannot reach the group it falls into.
    """
    missing = -x.shape[1] % length
    x = jnp.pad(jnp.where(mask[..., None] > 0, x, 0), ((0, 0), (0, missing), (0, 0)))
    return x, jnp.pad(mask, ((0, 0), (0, missing)))


def sliding_windows(x: Array, length: int, stride: int, segments: Int[Array, "B T"] | None = None) -> Array:
    """Windows of odd `length` around every `stride`-th entry of [B T C]: [B ceil(T/stride) length C].

    The first window is centred on the first entry; beyond the ends, or the ends of the centre's segment, are zeros.
    """
    around = length // 2
    padded = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
    windows = jnp.stack([padded[:, place : place + x.shape[1] : stride] for place in range(length)], 2)
    if segments is None:
        return windows
    own = sliding_windows(segments[..., None], length, stride) == segments[:, ::stride, None, None]
    return jnp.where(own, windows, 0)
