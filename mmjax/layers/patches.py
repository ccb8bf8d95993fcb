"""Cutting grids and sequences into patches while the batch stays split over the mesh."""

import jax
from jaxtyping import Array

from mmjax.sharding.rules import Rules


def reshape(x: Array, *shape: int, rules: Rules) -> Array:
    """x[B ...] as [B *shape]; says that the batch stays split, as a reshape next to a split dimension must be told."""
    return jax.lax.reshape(x, (x.shape[0], *shape), out_sharding=rules.spec("batch", *[None] * len(shape)))


def cut_picture(x: Array, side: int, *, rules: Rules) -> Array:
    """Pictures [B H W C] as square patches [B (H W / side^2) (side^2 C)], row by row."""
    _, height, width, channels = x.shape
    rows, columns = height // side, width // side
    x = reshape(x, rows, side, columns, side, channels, rules=rules).transpose(0, 1, 3, 2, 4, 5)
    return reshape(x, rows * columns, side * side * channels, rules=rules)


def cut_sequence(x: Array, length: int, *, rules: Rules) -> Array:
    """Sequences [B T ...] as groups [B T/length length ...] of consecutive entries; T is a multiple of the length."""
    return reshape(x, x.shape[1] // length, length, *x.shape[2:], rules=rules)
