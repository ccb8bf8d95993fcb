"""Position embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

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
