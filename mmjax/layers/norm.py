"""RMSNorm, unit norm and dropout."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import make_parameter
from mmjax.sharding.rules import Rules


class RMSNorm(nnx.Module):
    """Root-mean-square norm x / RMS(x) * gain, the RMS in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, *, rules: Rules, rngs: nnx.Rngs):
        self.gain = make_parameter(jax.nn.initializers.ones, (width,), (None,), rules=rules, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-6)
        return (wide * scale * self.gain[...]).astype(x.dtype)


def unit_norm(x: Float[Array, "... D"], epsilon: float = 1e-12) -> Float[Array, "... D"]:
    """x / sqrt(|x|² + epsilon) over the last dimension, in x's dtype; zero where x is zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + epsilon)


def dropout(x: Float[Array, "..."], rate: float, key: jax.Array | None) -> Float[Array, "..."]:
    """x with a share `rate` of its entries set to zero and the rest scaled up (Srivastava et al. 2014).

    x itself without a key.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
