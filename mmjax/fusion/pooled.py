"""Fusion by adding, averaging or comparing one vector per modality."""

import abc
from collections.abc import Callable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import make_parameter
from mmjax.layers.settings import Settings

Means = Float[Array, "B M D"]
There = Bool[Array, "B M"]


class Plain(Fusion):
    """A fusion without parameters; in all of these a missing modality is left out."""

    @staticmethod
    @abc.abstractmethod
    def pool(means: Means, there: There) -> Float[Array, "B D"]:
        """One vector of those that are there; the others are zero."""

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "PlainFusion":
        return PlainFusion(modalities, self.pool)


@chz.chz
class Sum(Plain):
    """h = h1 + ... + hM, every modality's mean token added."""

    @staticmethod
    def pool(means: Means, there: There) -> Float[Array, "B D"]:
        return means.sum(1)


@chz.chz
class Mean(Plain):
    """h = (h1 + ... + hM) / M over the modalities that are there."""

    @staticmethod
    def pool(means: Means, there: There) -> Float[Array, "B D"]:
        return means.sum(1) / jnp.maximum(there.sum(1, keepdims=True), 1).astype(means.dtype)


@chz.chz
class Max(Plain):
    """h = max(h1, ..., hM), entry by entry, over the modalities that are there."""

    @staticmethod
    def pool(means: Means, there: There) -> Float[Array, "B D"]:
        largest = jnp.where(there[..., None], means, -jnp.inf).max(1)
        return jnp.where(there.any(1, keepdims=True), largest, 0)


class PlainFusion(PooledFusion):
    """See `Sum`, `Mean` and `Max`."""

    def __init__(self, modalities: tuple[str, ...], pool: Callable[[Means, There], Float[Array, "B D"]]):
        self.modalities, self.pool = modalities, pool

    def combine(self, means: Means, there: There, key: jax.Array | None) -> tuple[Float[Array, "B D"], Intermediates]:
        return self.pool(means, there), {}


@chz.chz
class WeightedSum(Fusion):
    """h = w1 h1 + ... + wM hM with w = softmax(a) over the modalities that are there; a is learned."""

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "WeightedSumFusion":
        return WeightedSumFusion(modalities, settings, rngs)


class WeightedSumFusion(PooledFusion):
    """See `WeightedSum`."""

    def __init__(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        zeros = jax.nn.initializers.zeros
        self.importance = make_parameter(zeros, (len(modalities),), (None,), rules=settings.rules, rngs=rngs)
        self.modalities = modalities

    def combine(self, means: Means, there: There, key: jax.Array | None) -> tuple[Float[Array, "B D"], Intermediates]:
        weights = softmax_over(jnp.broadcast_to(self.importance[...], there.shape), there)
        return jnp.einsum("bm,bmd->bd", weights.astype(means.dtype), means), {"weights": weights}


def softmax_over(scores: Float[Array, "B M"], there: There) -> Float[Array, "B M"]:
    """Softmax in float32 over the entries that are there, the others 0; all are 0 where none is."""
    return jnp.where(there, jax.nn.softmax(jnp.where(there, scores.astype(jnp.float32), -1e9)), 0)
