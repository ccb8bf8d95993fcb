"""RMSNorm, LayerNorm, InstanceNorm, unit norm and dropout."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import make_parameter
from mmjax.sharding.rules import Rules


class RMSNorm(nnx.Module):
    """Root-mean-square norm x / RMS(x) * gain, the RMS in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rules: Rules, rngs: nnx.Rngs):
        self.gain = make_parameter(jax.nn.initializers.ones, (width,), (None,), rules=rules, rngs=rngs)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return (_divide_by_rms(x.astype(jnp.float32), self.epsilon) * self.gain[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * gain + bias, mean and variance in float32 (Ba et al. 2016)."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, rules: Rules, rngs: nnx.Rngs):
        self.gain = make_parameter(jax.nn.initializers.ones, (width,), (None,), rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (width,), (None,), rules=rules, rngs=rngs)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        return (_divide_by_rms(wide, self.epsilon) * self.gain[...] + self.bias[...]).astype(x.dtype)


def _divide_by_rms(x: Float[Array, "... D"], epsilon: float) -> Float[Array, "... D"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + epsilon)


Norm = RMSNorm | LayerNorm


def make_norm(options: BlockOptions, width: int, *, rules: Rules, rngs: nnx.Rngs) -> Norm:
    """The norm that the options of a transformer's blocks name."""
    kind = LayerNorm if options.norm == "layer" else RMSNorm
    return kind(width, epsilon=options.epsilon, rules=rules, rngs=rngs)


class InstanceNorm(nnx.Module):
    """LayerNorm over time, of each channel by itself (Ulyanov et al. 2016).

    Mean and variance are in float32, and of the positions whose mask is true.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5, rules: Rules, rngs: nnx.Rngs):
        self.gain = make_parameter(jax.nn.initializers.ones, (width,), (None,), rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (width,), (None,), rules=rules, rngs=rngs)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"]) -> Float[Array, "B T C"]:
        wide, real = x.astype(jnp.float32), mask[..., None]
        count = jnp.maximum(real.sum(1, keepdims=True), 1)
        wide = wide - jnp.where(real, wide, 0).sum(1, keepdims=True) / count
        variance = jnp.where(real, jnp.square(wide), 0).sum(1, keepdims=True) / count
        scale = jax.lax.rsqrt(variance + self.epsilon)
        return (wide * scale * self.gain[...] + self.bias[...]).astype(x.dtype)


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
