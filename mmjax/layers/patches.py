"""Cutting grids and sequences into patches while the batch stays split over the mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


def fill_up(x: Float[Array, "B T C"], mask: Bool[Array, "B T"], length: int) -> tuple[Array, Array]:
    """A sequence and its mask, with zeros where that is false and filled up by such entries to a multiple of `length`.

    What stands at a masked entry can then not reach the group it falls into.
    """
    missing = -x.shape[1] % length
    x = jnp.pad(jnp.where(mask[..., None], x, 0), ((0, 0), (0, missing), (0, 0)))
    return x, jnp.pad(mask, ((0, 0), (0, missing)))


def windows(x: Array, length: int, stride: int) -> Array:
    """What a convolution [B T C] of odd `length` sees at every `stride`-th entry: [B ceil(T/stride) length C].

    The first window is centred on the first entry; beyond the ends are zeros.
    """
    around = length // 2
    padded = jnp.pad(x, ((0, 0), (around, around), (0, 0)))
    return jnp.stack([padded[:, place : place + x.shape[1] : stride] for place in range(length)], 2)
