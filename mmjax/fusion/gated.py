"""Fusion by gates."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import Linear
from mmjax.layers.settings import Settings


@chz.chz
class Gated(Fusion):
    """h = z1 * tanh(V1 h1) + ... + zM * tanh(VM hM) with gates z_m = sigmoid(W_m [h1; ...; hM] + b_m).

    The gated multimodal unit (Arevalo et al. 2017). A missing modality adds 0, and the gates read zeros for it.
    """

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "GatedFusion":
        return GatedFusion(modalities, settings, rngs)


class GatedFusion(PooledFusion):
    """See `Gated`."""

    def __init__(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width, count = settings.rules, settings.width, len(modalities)
        shape = (count, width, count, width)
        self.gates = Linear(shape, (None, "embed", None, None), inputs=2, bias=True, rules=rules, rngs=rngs)
        self.values = nnx.List([Linear((width, width), ("embed", None), rules=rules, rngs=rngs) for _ in modalities])
        self.modalities = modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        gates = jnp.where(present[..., None], jax.nn.sigmoid(self.gates(means)), 0)
        values = jnp.stack([jnp.tanh(value(means[:, index])) for index, value in enumerate(self.values)], 1)
        return (gates * values).sum(1), {"gates": gates}
