"""Fusion by the sum, mean, maximum or weighted sum of one vector per modality."""

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
Present = Bool[Array, "B M"]


class ElementwisePooling(Fusion):
    """A fusion without parameters; missing modalities are left out."""

    @staticmethod
    @abc.abstractmethod
    def pool(means: Means, present: Present) -> Float[Array, "B D"]:
        """Combines the vectors of the present modalities; those of absent ones are zero."""

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "ElementwisePoolingFusion":
        return ElementwisePoolingFusion(modalities, self.pool)


@chz.chz
class Sum(ElementwisePooling):
    """h = h1 + ... + hM, the sum of every modality's mean token."""

    @staticmethod
    def pool(means: Means, present: Present) -> Float[Array, "B D"]:
        return means.sum(1)


@chz.chz
class Mean(ElementwisePooling):
    """h = (h1 + ... + hM) / M over the present modalities."""

    @staticmethod
    def pool(means: Means, present: Present) -> Float[Array, "B D"]:
        return means.sum(1) / jnp.maximum(present.sum(1, keepdims=True), 1).astype(means.dtype)


@chz.chz
class Max(ElementwisePooling):
    """h = max(h1, ..., hM), elementwise, over the present modalities."""

    @staticmethod
    def pool(means: Means, present: Present) -> Float[Array, "B D"]:
        largest = jnp.where(present[..., None], means, -jnp.inf).max(1)
        return jnp.where(present.any(1, keepdims=True), largest, 0)


class ElementwisePoolingFusion(PooledFusion):
    """See `Sum`, `Mean` and `Max`."""

    def __init__(self, modalities: tuple[str, ...], pool: Callable[[Means, Present], Float[Array, "B D"]]):
        self.modalities, self.pool = modalities, pool

    def combine(
        self, means: Means, present: Present, key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        return self.pool(means, present), {}


@chz.chz
class WeightedSum(Fusion):
    """h = w1 h1 + ... + wM hM with w = softmax(a) over the present modalities; a is learned."""

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "WeightedSumFusion":
        return WeightedSumFusion(modalities, settings, rngs)


class WeightedSumFusion(PooledFusion):
    """See `WeightedSum`."""

    def __init__(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        zeros = jax.nn.initializers.zeros
        self.importance = make_parameter(zeros, (len(modalities),), (None,), rules=settings.rules, rngs=rngs)
        self.modalities = modalities

    def combine(
        self, means: Means, present: Present, key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        weights = softmax_over(jnp.broadcast_to(self.importance[...], present.shape), present)
        return jnp.einsum("bm,bmd->bd", weights.astype(means.dtype), means), {"weights": weights}


def softmax_over(scores: Float[Array, "B M"], present: Present) -> Float[Array, "B M"]:
    """Softmax in float32 over the present entries, 0 for the others; all 0 where none is present."""
    return jnp.where(present, jax.nn.softmax(jnp.where(present, scores.astype(jnp.float32), -1e9)), 0)
