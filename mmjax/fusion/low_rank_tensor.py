"""Fusion by a low-rank tensor product."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.settings import Settings


@chz.chz
class LowRankTensor(Fusion):
    """h = norm(sum over r of (W_r1 [h1; 1]) * ... * (W_rM [hM; 1])).

    This is a linear map of the outer product of all modalities whose tensor has rank `rank` (Liu et al. 2018). A
    missing modality contributes only the 1.
    """

    rank: int = chz.field(default=8, doc="rank of the tensor: terms of the sum")

    @chz.validate
    def _positive(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be 1 or more")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "LowRankTensorFusion":
        return LowRankTensorFusion(self, modalities, settings, rngs)


class LowRankTensorFusion(PooledFusion):
    """See `LowRankTensor`; the weights of the 1 are stored as their difference from 1."""

    def __init__(self, config: LowRankTensor, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        shape, axes = (width, config.rank, width), ("embed", None, None)
        self.factors = nnx.List([Linear(shape, axes, bias=True, rules=rules, rngs=rngs) for _ in modalities])
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.modalities = modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        product = jnp.ones((), means.dtype)
        for index, factor in enumerate(self.factors):
            product = product * (1 + factor(means[:, index]))
        return self.norm(product.sum(1)), {}
