"""Regression with uncertainty."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.linear import Linear
from mmjax.layers.output import Output, find_feature
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Vector


@chz.chz
class Regress(Output):
    """Predicts quantities with their spread: a Gaussian's mean and deviation (Nix & Weigend 1994)."""

    target: str = chz.field(doc="name of the quantity")

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "RegressHead":
        return RegressHead(self, find_feature("Regress.target", self.target, features, Vector), settings, rngs)


class RegressHead(nnx.Module):
    """Pooled features -> mean and deviation Float[B S Q].

    The loss is -log N(truth; mean, deviation^2) in float32, per number.
    """

    def __init__(self, config: Regress, quantity: Vector, settings: Settings, rngs: nnx.Rngs):
        shape = (settings.width, quantity.slots, quantity.size, 2)
        axes = ("embed", None, None, None)
        self.parameters = Linear(shape, axes, bias=True, scale=0.1, rules=settings.rules, rngs=rngs)
        self.target = config.target

    def _distribution(self, fused: Fused) -> tuple[Float[Array, "B S Q"], Float[Array, "B S Q"]]:
        both = self.parameters(fused.pooled).astype(jnp.float32)
        return both[..., 0], jax.nn.softplus(both[..., 1]) + 1e-3

    def _weights(self, batch: Batch) -> Float[Array, "B S 1"]:
        there = batch.mask[self.target] & batch.present[self.target][:, None]
        return there.astype(jnp.float32)[..., None]

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._weights(batch).sum() * batch.values[self.target].shape[-1]

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        mean, deviation = self._distribution(fused)
        weights = self._weights(batch)
        # What is absent is replaced before it is computed with: a gradient of zero times NaN would be NaN.
        truth = jnp.where(weights > 0, batch.values[self.target].astype(jnp.float32), 0)
        error = truth - mean
        losses = jnp.square(error / deviation) / 2 + jnp.log(deviation) + jnp.log(2 * jnp.pi) / 2
        loss = Average.of(losses, weights)
        within = (jnp.abs(error) < 1.96 * deviation).astype(jnp.float32)
        metrics: Metrics = {
            "absolute_error": Average.of(jnp.abs(error), weights),
            "coverage_95": Average.of(within, weights),
        }
        return loss, metrics

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        mean, deviation = self._distribution(fused)
        return {"mean": mean, "deviation": deviation}
