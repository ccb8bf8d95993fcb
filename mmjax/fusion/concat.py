"""Fusion by concatenation."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.fusion.base import Fusion, Intermediates
from mmjax.layers.attention import masked_mean
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import Norm, dropout
from mmjax.layers.settings import Settings
from mmjax.types import Tokens


@chz.chz
class Concat(Fusion):
    """h = V g(W [h1; ...; hM] + b): every modality's mean token, concatenated, through a two-layer perceptron.

    A missing modality's place is taken by a vector learned for that.
    """

    hidden: int = chz.field(default=256, doc="hidden units of the perceptron")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "ConcatFusion":
        return ConcatFusion(self, modalities, settings, rngs)


class ConcatFusion(nnx.Module):
    """See `Concat`. The only fused token is the summary itself."""

    def __init__(self, config: Concat, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        shape = (len(modalities), width)
        self.missing = make_parameter(jax.nn.initializers.normal(0.02), shape, (None, None), rules=rules, rngs=rngs)
        self.up = Linear((*shape, config.hidden), (None, "embed", "mlp"), inputs=2, bias=True, rules=rules, rngs=rngs)
        self.down = Linear((config.hidden, width), ("mlp", "embed"), bias=True, rules=rules, rngs=rngs)
        self.norm = Norm(width, rules=rules, rngs=rngs)
        self.modalities, self.rate = modalities, settings.dropout

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        means = jnp.stack([masked_mean(streams[name].values, streams[name].mask) for name in self.modalities], 1)
        there = jnp.stack([streams[name].mask.any(1) for name in self.modalities], 1)
        summary = jnp.where(there[..., None], means, self.missing[...].astype(means.dtype))
        hidden = dropout(jax.nn.gelu(self.up(summary)), self.rate, key)
        pooled = self.norm(self.down(hidden))
        return Tokens(pooled[:, None], there.any(1, keepdims=True)), pooled, {"means": means}
