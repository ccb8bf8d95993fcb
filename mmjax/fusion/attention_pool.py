"""Fusion by attention over modalities."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.fusion.pooled import softmax_over
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.settings import Settings


@chz.chz
class AttentionPool(Fusion):
    """h = w1 h1 + ... + wM hM with w = softmax(s) and s_m = v . tanh(W h_m + b_m).

    The additive attention of Bahdanau et al. 2015, over modalities instead of words (Hori et al. 2017). A missing
    modality has weight 0.
    """

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "AttentionPoolFusion":
        return AttentionPoolFusion(modalities, settings, rngs)


class AttentionPoolFusion(PooledFusion):
    """See `AttentionPool`."""

    def __init__(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.read = Linear((width, width), ("embed", "mlp"), rules=rules, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.kind = make_parameter(zeros, (len(modalities), width), (None, "mlp"), rules=rules, rngs=rngs)
        self.score = Linear((width, 1), ("mlp", None), rules=rules, rngs=rngs)
        self.modalities = modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        hidden = jnp.tanh(self.read(means) + self.kind[...].astype(means.dtype))
        weights = softmax_over(self.score(hidden)[..., 0], present)
        return jnp.einsum("bm,bmd->bd", weights.astype(means.dtype), means), {"weights": weights}
