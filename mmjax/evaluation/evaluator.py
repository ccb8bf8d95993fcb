"""A model's figures on a held-out split: exact on any number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from mmjax.data.loader import Data, HostBatch, Loader
from mmjax.data.place import Feed, rows_of
from mmjax.evaluation.retrieval import retrieval_metrics
from mmjax.heads.contrast import ContrastHead
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Metrics

Predictions = dict[str, dict[str, Array]]


def evaluate_step(model: Multimodal, batch: Batch, *, rules: Rules) -> tuple[Metrics, Predictions, dict[str, Array]]:
    """Averages over a batch, all predictions, and which features are present; the last two whole on every device."""
    _, metrics = model.loss(batch)
    gather = functools.partial(
        jax.tree.map, lambda array: jax.sharding.reshard(array, rules.spec(*[None] * array.ndim))
    )
    return metrics, gather(model.predict(batch)), gather(batch.present)


class Evaluator:
    """Evaluates models on the splits of one data set; compiles its step once.

    `data` is bound and `sharding` is how a batch lies on the mesh, which is the current one whenever this is called.
    """

    def __init__(self, data: Data, data_dir: str, batch_size: int, *, sharding: NamedSharding, rules: Rules):
        # Starting a process takes as long as a short pass.
        self._data = chz.replace(data, workers=0)
        self._data_dir, self._batch_size, self._sharding = data_dir, batch_size, sharding
        self._step = jax.jit(functools.partial(evaluate_step, rules=rules))
        self._loaders: dict[str, Loader] = {}

    def evaluate(
        self, model: Multimodal, split: str, on_batch: Callable[[HostBatch], None] | None = None
    ) -> dict[str, float]:
        """Metrics over a whole split, each example counted once, as "split/output/metric".

        Outputs that align two modalities are also judged by retrieval over the whole split as the gallery.
        `on_batch` is told of every batch: what could not be read of it, for one.
        """
        total: Metrics | None = None
        aligned = {name: output for name, output in model.outputs.items() if isinstance(output, ContrastHead)}
        embeddings: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in aligned}
        for host, metrics, predictions, present in self._predict(model, split):
            if on_batch is not None:
                on_batch(host)
            total = metrics if total is None else jax.tree.map(np.add, total, metrics)
            for name, output in aligned.items():
                sides = [predictions[name][side] for side in output.names]
                embeddings[name].append((*sides, *(present[side] for side in output.names)))
        result = {name: float(average.value()) for name, average in (total or {}).items()}
        for name, output in aligned.items():
            columns = [np.concatenate(parts) for parts in zip(*embeddings[name], strict=True)]
            retrieved = retrieval_metrics(*columns, names=output.names)
            result |= {f"{name}/{metric}": value for metric, value in retrieved.items()}
            # In-batch figures say nothing where the whole gallery was searched.
            result.pop(f"{name}/batch_accuracy")
        result["loss"] = sum(weight * result[f"{name}/loss"] for name, weight in model.weights.items())
        return {f"{split}/{name}": value for name, value in result.items()}

    def first(self, model: Multimodal, split: str) -> tuple[HostBatch, dict[str, dict[str, np.ndarray]]]:
        """The first batch of a split with its predictions, for looking at."""
        host, _, predictions, _ = next(self._predict(model, split, steps=1))
        return host, predictions

    def _predict(self, model: Multimodal, split: str, steps: int | None = None) -> Iterator[Any]:
        """Batch by batch: what the host knows, averages, predictions and presence, on the host."""
        if split not in self._loaders:
            rows = rows_of(self._sharding, self._batch_size)
            self._loaders[split] = Loader(self._data, self._data_dir, split, self._batch_size, rows=rows)
        loader = self._loaders[split]
        with Feed(loader, self._sharding, 0, steps or loader.steps) as feed:
            for placed in feed:
                yield (placed.host, *jax.device_get(self._step(model, placed.batch)))
