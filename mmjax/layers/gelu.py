"""The activation between products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.checkpoint
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), by its approximation with tanh (Hendrycks & Gimpel 2016), in float32.

    Only x is kept for the backward pass, which computes the rest again: memory is slower than that.
    """
    return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)
