"""Fusion by concatenation."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings


@chz.chz
class Concat(Fusion):
    """h = V g(W [h1; ...; hM] + b): the concatenated mean tokens through a two-layer MLP.

    A learned vector replaces a missing modality.
    """

    hidden: int = chz.field(default=256, doc="hidden units of the perceptron")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "ConcatFusion":
        return ConcatFusion(self, modalities, settings, rngs)


class ConcatFusion(PooledFusion):
    """See `Concat`."""

    def __init__(self, config: Concat, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        shape = (len(modalities), width)
        self.missing = make_parameter(jax.nn.initializers.normal(0.02), shape, (None, None), rules=rules, rngs=rngs)
        self.up = Linear((*shape, config.hidden), (None, "embed", "mlp"), inputs=2, bias=True, rules=rules, rngs=rngs)
        self.down = Linear((config.hidden, width), ("mlp", "embed"), bias=True, rules=rules, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.modalities, self.rate = modalities, settings.dropout

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        summaries = jnp.where(present[..., None], means, self.missing[...].astype(means.dtype))
        hidden = dropout(jax.nn.gelu(self.up(summaries)), self.rate, key)
        return self.norm(self.down(hidden)), {}
