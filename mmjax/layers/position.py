"""Position embeddings: learned, sinusoidal of times, and rotary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.linear import make_parameter
from mmjax.sharding.rules import Rules


def make_position(shape: tuple[int, ...], *, rules: Rules, rngs: nnx.Rngs) -> nnx.Param:
    """A learned position embedding: [N, D] for a sequence, [H, W, D] for a resizable grid."""
    init = jax.nn.initializers.normal(0.02)
    return make_parameter(init, shape, (None,) * len(shape), rules=rules, rngs=rngs)


def time_embedding(time: Float[Array, "B N"], width: int) -> Float[Array, "B N D"]:
    """Sinusoidal embedding of seconds, with periods from 20 ms to 200 s (after Vaswani et al. 2017).

    Streams of different rates share this time axis.
    """
    half = width // 2
    frequencies = 2 * jnp.pi * jnp.exp(jnp.linspace(jnp.log(50.0), jnp.log(0.005), half))
    angles = time.astype(jnp.float32)[..., None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    return jnp.pad(waves, ((0, 0), (0, 0), (0, width - 2 * half)))


def rotate(x: Float[Array, "B N H K"], positions: Int[Array, "#B N"], base: float) -> Float[Array, "B N H K"]:
    """Rotary position embedding: rotates (x_i, x_(i + K/2)) by position * base^(-2i / K) (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = positions.astype(jnp.float32)[..., None] * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = (wave(angles)[:, :, None, :].astype(x.dtype) for wave in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
