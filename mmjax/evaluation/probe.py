"""What models predict when modalities are hidden or noisy."""

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.noise import corrupt
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature
from mmjax.vmap_runs import vmap_runs


class Answers(NamedTuple):
    """Class probabilities of S models for A answers, the truth, and each answer's example.

    An example with several slots has several answers.
    """

    probabilities: Float[np.ndarray, "S A K"]
    truth: Int[np.ndarray, "A"]
    examples: Int[np.ndarray, "A"]

    @property
    def right(self) -> Float[np.ndarray, "S A"]:
        """1 where the most probable class is the true one."""
        return (self.probabilities.argmax(-1) == self.truth).astype(np.float64)


class LinearProbe:
    """Predicts classes of evenly spread examples, with one `Classify` output of `count` stacked models.

    The batches are read once and stay on the devices.
    """

    def __init__(self, context: EvalContext, output: str, target: str, *, count: int, examples: int | None = None):
        self._count, self._batch_size = count, context.batch_size
        with context.prefetch(context.loader(examples=examples)) as feed:
            self._batches = [placed.batch for placed in feed]
        features, rules = context.features, context.rules
        self._step = jax.jit(
            functools.partial(_probe, features=features, output=output, target=target, rules=rules, count=count)
        )

    def predict(
        self, models: Multimodal, *, hidden: Collection[str] = (), noise: Mapping[str, float] | None = None
    ) -> Answers:
        """What the models predict without the modalities `hidden`, and with `noise` (see `corrupt`) in others."""
        probabilities, truths, examples = [], [], []
        noise = noise or {}
        for number, batch in enumerate(self._batches):
            keep = {name: np.bool_(name not in hidden) for name in models.encoders}
            amounts = {name: np.float32(noise.get(name, 0.0)) for name in models.encoders}
            predicted, truth, real = jax.device_get(self._step(models, batch, keep, amounts, np.int32(number)))
            predicted = predicted if self._count > 1 else predicted[None]
            probabilities.append(predicted[:, real])
            truths.append(truth[real])
            examples.append(number * self._batch_size + np.nonzero(real)[0])
        return Answers(np.concatenate(probabilities, 1), np.concatenate(truths), np.concatenate(examples))


def _probe(
    models: Multimodal,
    batch: Batch,
    keep: Mapping[str, Array],
    amounts: Mapping[str, Array],
    number: Int[Array, ""],
    *,
    features: Mapping[str, Feature],
    output: str,
    target: str,
    rules: Rules,
    count: int,
) -> tuple[Float[Array, "..."], Int[Array, "B S"], Array]:
    """Probabilities [B S K], of several models [M B S K], true classes and which of them count."""
    present = {name: there & keep[name] if name in keep else there for name, there in batch.present.items()}
    changed = corrupt(Batch(batch.values, batch.mask, present), number, features=features, amounts=amounts)

    def predict(model: Multimodal) -> Array:
        return rules.gather(model.predict(changed)[output]["probabilities"])

    real = batch.mask[target] & batch.present[target][:, None]
    return vmap_runs(predict, count)(models), *rules.gather((batch.values[target], real))
