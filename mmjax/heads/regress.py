"""Regression with predicted uncertainty."""

from collections.abc import Mapping

import chz
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.output import Output, OutputModule, find_feature
from mmjax.layers.settings import Settings
from mmjax.metrics.regression import regression_statistics
from mmjax.metrics.statistics import Statistic
from mmjax.types import Average, Batch, Feature, Fused, Metrics, Vector


@chz.chz
class Regress(Output):
    """Predicts the mean and deviation of a Gaussian for each number (Nix & Weigend 1994)."""

    target: str = chz.field(doc="name of the vector feature")
    mean: tuple[float, ...] | None = chz.field(
        default=None, doc="about the mean of each number of the target, from which the model predicts the difference"
    )
    deviation: tuple[float, ...] | None = chz.field(
        default=None, doc="about the deviation of each number, in whose units the model predicts"
    )

    @chz.validate
    def _valid(self) -> None:
        if min(self.deviation or (1.0,)) <= 0:
            raise ValueError("deviation must be above 0")

    @property
    def target_feature(self) -> str:
        return self.target

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "RegressHead":
        vector = find_feature("Regress.target", self.target, features, Vector)
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if values is not None and len(values) != vector.size:
                raise UserError(
                    f"Regress.{name} has {len(values)} numbers, and {self.target} {vector.size}; give as many"
                )
        return RegressHead(self, vector, settings, rngs)


class RegressHead(OutputModule):
    """Pooled features -> mean and deviation Float[B S Q].

    The loss is -log N(truth; mean, deviation^2) in float32, per number, in the target's own units.
    """

    def __init__(self, config: Regress, quantity: Vector, settings: Settings, rngs: nnx.Rngs):
        shape = (settings.width, quantity.slots, quantity.size, 2)
        axes = ("embed", None, None, None)
        self.parameters = Linear(shape, axes, bias=True, scale=0.1, rules=settings.rules, rngs=rngs)
        self.target = self.truth_feature = config.target
        self.mean, self.deviation = config.mean, config.deviation

    def _distribution(self, fused: Fused) -> tuple[Float[Array, "B S Q"], Float[Array, "B S Q"]]:
        both = self.parameters(fused.pooled).astype(jnp.float32)
        mean, deviation = both[..., 0], jax.nn.softplus(both[..., 1]) + 1e-3
        if self.deviation is not None:
            mean, deviation = (x * jnp.array(self.deviation, jnp.float32) for x in (mean, deviation))
        return mean if self.mean is None else mean + jnp.array(self.mean, jnp.float32), deviation

    def _weights(self, batch: Batch) -> Float[Array, "B S 1"]:
        present = batch.mask[self.target] & batch.present[self.target][:, None]
        return present.astype(jnp.float32)[..., None]

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

    def statistics(
        self,
        predictions: Mapping[str, np.ndarray],
        truth: Float[np.ndarray, "E S Q"],
        real: Bool[np.ndarray, "E S"],
        feature: Feature,
    ) -> dict[str, Statistic]:
        return regression_statistics(predictions["mean"], predictions["deviation"], truth, real)
