"""What models answer when modalities are hidden or noised."""

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from mmjax.data.device_batches import DevicePrefetcher, rows_of
from mmjax.data.loader import Data, Loader
from mmjax.evaluation.noise import corrupt
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature
from mmjax.vmap_runs import vmap_runs


class Answers(NamedTuple):
    """Class probabilities of S models for A answers, the truths, and the place of the example that each is about.

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
    """Asks one `Classify` output of `count` stacked models about evenly spread examples of a split, again and again.

    `data` is bound and `sharding` is how a batch lies on the mesh, which is the current one whenever this is called.
    The batches are read once and stay on the devices.
    """

    def __init__(
        self,
        data: Data,
        data_dir: str,
        split: str,
        batch_size: int,
        output: str,
        target: str,
        *,
        sharding: NamedSharding,
        rules: Rules,
        count: int,
        examples: int | None = None,
    ):
        self._output, self._target, self._count, self._batch_size = output, target, count, batch_size
        rows = rows_of(sharding, batch_size)
        data = chz.replace(data, workers=0)
        loader = Loader(data, data_dir, split, batch_size, rows=rows, examples=examples)
        with DevicePrefetcher(loader, sharding, 0, loader.steps) as feed:
            self._batches = [placed.batch for placed in feed]
        self._step = jax.jit(
            functools.partial(_probe, features=data.features, output=output, target=target, rules=rules, count=count)
        )

    def ask(
        self, models: Multimodal, *, hidden: Collection[str] = (), noise: Mapping[str, float] | None = None
    ) -> Answers:
        """What the models answer without the modalities `hidden`, and with `noise` (see `corrupt`) in others."""
        probabilities, truths, examples = [], [], []
        noise = noise or {}
        for number, batch in enumerate(self._batches):
            keep = {name: np.bool_(name not in hidden) for name in models.encoders}
            amounts = {name: np.float32(noise.get(name, 0.0)) for name in models.encoders}
            said, truth, real = jax.device_get(self._step(models, batch, keep, amounts, np.int32(number)))
            said = said if self._count > 1 else said[None]
            probabilities.append(said[:, real])
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
    """Probabilities [B S K], of several models [M B S K], true classes and which of them count; whole everywhere."""
    present = {name: there & keep[name] if name in keep else there for name, there in batch.present.items()}
    changed = corrupt(Batch(batch.values, batch.mask, present), number, features=features, amounts=amounts)

    def answer(model: Multimodal) -> Array:
        said = model.predict(changed)[output]["probabilities"]
        return rules.gather(said)

    real = batch.mask[target] & batch.present[target][:, None]
    return vmap_runs(answer, count)(models), *rules.gather((batch.values[target], real))
