"""Differentiable augmentation of what critics see, true and generated alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Grid = Float[Array, "B H W C"]


def diff_augment(x: Grid, key: jax.Array) -> Grid:
    """DiffAugment: random colour, translation and cutout of each example (Zhao et al. 2020).

    Brightness by up to 0.5, saturation by a factor of up to 2, contrast by 0.5 to 1.5, a shift by up to an eighth of
    each side with zeros moved in, and zeros in a box of half of each side.
    """
    light_key, move_key, cut_key = jax.random.split(key, 3)
    return _cut(_move(_light(x, light_key), move_key), cut_key)


def _draw(key: jax.Array, x: Grid, count: int) -> list[Float[Array, "B 1 1 1"]]:
    """`count` random numbers in [0, 1) per example."""
    shape = (x.shape[0], 1, 1, 1)
    spec = jax.typeof(x).sharding
    return [jax.random.uniform(part, shape, out_sharding=spec) for part in jax.random.split(key, count)]


def _light(x: Grid, key: jax.Array) -> Grid:
    brightness, saturation, contrast = _draw(key, x, 3)
    x = x + brightness - 0.5
    grey = x.mean(3, keepdims=True)
    x = grey + (x - grey) * 2 * saturation
    mean = x.mean((1, 2, 3), keepdims=True)
    return mean + (x - mean) * (0.5 + contrast)


def _move(x: Grid, key: jax.Array) -> Grid:
    """Shifts by products with matrices of zeros and ones, which a sharded batch allows."""
    rows, columns = (_picks(size, draw[:, 0, 0]) for size, draw in zip(x.shape[1:3], _draw(key, x, 2), strict=True))
    return jnp.einsum("bij,bkl,bjlc->bikc", rows, columns, x)


def _picks(size: int, draw: Float[Array, "B 1"]) -> Float[Array, "B S S"]:
    most = size // 8
    shift = jnp.floor(draw * (2 * most + 1)) - most
    place = jnp.arange(size, dtype=jnp.float32)
    return ((place[:, None] - place)[None] == shift[..., None]).astype(jnp.float32)


def _cut(x: Grid, key: jax.Array) -> Grid:
    kept = jnp.zeros_like(x[..., :1], dtype=bool)
    for axis, draw in zip((1, 2), _draw(key, x, 2), strict=True):
        size = x.shape[axis]
        place = jnp.arange(size, dtype=jnp.float32).reshape([-1 if axis == other else 1 for other in range(4)])
        # The centre of the box may be anywhere, so that borders are cut as often as the middle.
        kept = kept | (jnp.abs(place + 0.5 - draw * size) > size / 4)
    return jnp.where(kept, x, 0)
