"""Late fusion: a sum of per-modality predictions."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.settings import Settings


@chz.chz
class Late(Fusion):
    """h = w1 (V1 h1 + b1) + ... + wM (VM hM + bM) over the present modalities; w is learned.

    A head that is linear in h, as `Classify` is, then predicts from every modality separately and adds the log-odds
    with the weights w: the product of experts of late fusion (Hinton 2002).
    """

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "LateFusion":
        return LateFusion(modalities, settings, rngs)


class LateFusion(PooledFusion):
    """Late fusion, built from `Late`."""

    def __init__(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        shape, axes = (width, width), ("embed", None)
        self.experts = nnx.List([Linear(shape, axes, bias=True, rules=rules, rngs=rngs) for _ in modalities])
        ones = jax.nn.initializers.ones
        self.weights = make_parameter(ones, (len(modalities),), (None,), rules=rules, rngs=rngs)
        self.modalities = modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        votes = jnp.stack([expert(means[:, index]) for index, expert in enumerate(self.experts)], 1)
        votes = jnp.where(present[..., None], votes * self.weights[...][:, None].astype(votes.dtype), 0)
        return votes.sum(1), {"votes": votes}
