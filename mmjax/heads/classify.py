"""Classification."""

from collections.abc import Mapping

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.output import Output, OutputModule, find_feature
from mmjax.layers.settings import Settings
from mmjax.metrics.classification import classification_statistics, cross_fit_temperatures
from mmjax.metrics.statistics import Statistic
from mmjax.types import Average, Batch, Feature, Fused, Label, Metrics


@chz.chz
class Classify(Output):
    """Softmax regression on the pooled features, per slot of a label (smoothing: Szegedy et al. 2016)."""

    target: str = chz.field(doc="name of the label")
    smoothing: float = chz.field(default=0.0, doc="label smoothing")
    class_weights: tuple[float, ...] | None = chz.field(default=None, doc="weight of an example by its class")

    @chz.validate
    def _smoothing(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must lie in [0, 1)")

    @property
    def target_feature(self) -> str:
        return self.target

    @property
    def can_judge(self) -> bool:
        return True

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "ClassifyHead":
        label = find_feature("Classify.target", self.target, features, Label)
        weights = self.class_weights
        if weights is not None and (len(weights) != len(label.names) or min(weights) < 0):
            raise UserError(
                f"Classify.class_weights needs {len(label.names)} non-negative numbers, one a class of {self.target}"
            )
        return ClassifyHead(self, label, settings, rngs)


class ClassifyHead(OutputModule):
    """Pooled features -> logits Float[B S K] of S slots and K classes.

    The loss is the cross-entropy in float32, averaged over weights.
    """

    explainable = True

    def __init__(self, config: Classify, label: Label, settings: Settings, rngs: nnx.Rngs):
        self.classes = len(label.names)
        shape = (settings.width, label.slots, self.classes)
        self.logits = Linear(shape, ("embed", None, None), bias=True, scale=0.1, rules=settings.rules, rngs=rngs)
        self.target = self.truth_feature = config.target
        self.smoothing, self.class_weights = config.smoothing, config.class_weights

    def _weights(self, batch: Batch) -> Float[Array, "B S"]:
        present = batch.mask[self.target] & batch.present[self.target][:, None]
        if self.class_weights is None:
            return present.astype(jnp.float32)
        hot = jax.nn.one_hot(batch.values[self.target], self.classes)
        return jnp.where(present, hot @ jnp.asarray(self.class_weights, jnp.float32), 0.0)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        return self._weights(batch).sum()

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        logits = self.logits(fused.pooled).astype(jnp.float32)
        truth, weights = batch.values[self.target], self._weights(batch)
        targets = optax.smooth_labels(jax.nn.one_hot(truth, self.classes), self.smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        right = (logits.argmax(-1) == truth).astype(jnp.float32)
        loss = Average.of(losses, weights)
        return loss, {"accuracy": Average.of(right, weights > 0)}

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {"probabilities": jax.nn.softmax(self.logits(fused.pooled).astype(jnp.float32))}

    def statistics(
        self,
        predictions: Mapping[str, np.ndarray],
        truth: Int[np.ndarray, "E S"],
        real: Bool[np.ndarray, "E S"],
        feature: Feature,
    ) -> dict[str, Statistic]:
        given = predictions["probabilities"], truth, real
        return classification_statistics(*given, feature.classes, cross_fit_temperatures(*given))

    def answer(self, predictions: Mapping[str, Array]) -> Int[Array, "B S"]:
        """The most probable class of every slot."""
        return predictions["probabilities"].argmax(-1).astype(jnp.int32)

    def answer_logits(self, answer: Int[Array, "B S"], fused: Fused) -> Float[Array, "B S K"]:
        """The logits among which an answer was chosen."""
        return self.logits(fused.pooled)
