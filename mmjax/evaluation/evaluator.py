"""A model's figures on a held-out split: exact on any number of devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.inputs import Sentence
from mmjax.data.loader import Data, HostBatch, Loader
from mmjax.data.place import Feed, rows_of
from mmjax.evaluation.retrieval import retrieval_metrics
from mmjax.evaluation.texts import text_metrics
from mmjax.generators.text import TextWriter
from mmjax.heads.contrast import ContrastHead
from mmjax.lockstep import over_runs, unstack
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Metrics

# By output: arrays by name, on the devices or, for who judges them, on the host.
Predictions = dict[str, dict[str, Any]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a model makes of a batch: averages, predictions by output, and of the batch what these are compared with.

    `truth` are the token ids of the texts that outputs write, by output; `present` says who has each feature.
    """

    metrics: Metrics
    predictions: Predictions
    truth: dict[str, Any]
    present: dict[str, Any]


def evaluate_step(model: Multimodal, batch: Batch, key: jax.Array | None, *, rules: Rules) -> Evaluated:
    """The answers to a batch, without chance if there is no key; whole on every device."""
    _, metrics = model.loss(batch)
    written = {name: batch.values[output.target] for name, output in _writers(model).items()}
    return Evaluated(*rules.gather((metrics, model.predict(batch, key), written, batch.present)))


def _writers(model: Multimodal) -> dict[str, TextWriter]:
    return {name: output for name, output in model.outputs.items() if isinstance(output, TextWriter)}


class Evaluator:
    """Evaluates models on the splits of one data set; compiles its step once.

    `data` is bound and `sharding` is how a batch lies on the mesh, which is the current one whenever this is called.
    Where `count` is more than 1, the models given are so many stacked (see `mmjax.lockstep`) and evaluated together.
    """

    def __init__(
        self, data: Data, data_dir: str, batch_size: int, *, sharding: NamedSharding, rules: Rules, count: int = 1
    ):
        # Starting a process takes as long as a short pass.
        self._data = chz.replace(data, workers=0)
        self._data_dir, self._batch_size, self._sharding = data_dir, batch_size, sharding
        self._count = count
        self._step = jax.jit(over_runs(functools.partial(evaluate_step, rules=rules), count, (0, None, None)))
        self._loaders: dict[str, Loader] = {}

    def evaluate(
        self,
        model: Multimodal,
        split: str,
        on_batch: Callable[[HostBatch], None] | None = None,
        *,
        seed: int | None = None,
    ) -> list[dict[str, float]]:
        """Metrics of every model over a whole split, each example counted once, as "split/output/metric".

        Outputs that align two modalities are also judged by retrieval over the whole split as the gallery.
        `on_batch` is told of every batch: what could not be read of it, for one. With a `seed` outputs answer with
        chance, as texts are written at a temperature; without, each gives what is most probable.
        """
        judges = [Judge(model, self._data) for _ in range(self._count)]
        for host, results in self._predict(model, split, seed=seed):
            if on_batch is not None:
                on_batch(host)
            for judge, answers in zip(judges, results, strict=True):
                judge.add(answers)
        return [{f"{split}/{name}": value for name, value in judge.result().items()} for judge in judges]

    def first(self, model: Multimodal, split: str) -> tuple[HostBatch, *tuple[Predictions, ...]]:
        """The first batch of a split with every model's predictions, for looking at."""
        host, results = next(self._predict(model, split, steps=1))
        return host, *(answers.predictions for answers in results)

    def _predict(
        self, model: Multimodal, split: str, *, steps: int | None = None, seed: int | None = None
    ) -> Iterator[tuple[HostBatch, list[Evaluated]]]:
        """Batch by batch: what the host knows, and every model's answers, on the host."""
        if split not in self._loaders:
            rows = rows_of(self._sharding, self._batch_size)
            self._loaders[split] = Loader(self._data, self._data_dir, split, self._batch_size, rows=rows)
        loader = self._loaders[split]
        with Feed(loader, self._sharding, 0, steps or loader.steps) as feed:
            for number, placed in enumerate(feed):
                key = None if seed is None else jax.random.fold_in(jax.random.key(seed), number)
                yield placed.host, unstack(jax.device_get(self._step(model, placed.batch, key)), self._count)


class Judge:
    """Sums up what one model did, batch by batch."""

    def __init__(self, model: Multimodal, data: Data):
        self._weights = model.weights
        self._aligned = {name: output for name, output in model.outputs.items() if isinstance(output, ContrastHead)}
        self._embeddings: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in self._aligned}
        self._writers, self._data = _writers(model), data
        self._texts: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in self._writers}
        self._total: Metrics | None = None

    def add(self, answers: Evaluated) -> None:
        """A batch's answers."""
        self._total = answers.metrics if self._total is None else jax.tree.map(np.add, self._total, answers.metrics)
        for name, output in self._aligned.items():
            sides = [answers.predictions[name][side] for side in output.names]
            self._embeddings[name].append((*sides, *(answers.present[side] for side in output.names)))
        for name, writer in self._writers.items():
            input = self._data.inputs[writer.target]
            assert isinstance(input, Sentence)
            both = answers.predictions[name]["ids"], answers.truth[name]
            for texts, ids in zip(self._texts[name], both, strict=True):
                texts.extend(input.decode(ids[row]) for row in np.flatnonzero(answers.present[writer.target]))

    def result(self) -> dict[str, float]:
        """All figures, as "output/metric"."""
        result: dict[str, float] = {}
        for name, metric in (self._total or {}).items():
            result |= metric.figures(name)
        for name, output in self._aligned.items():
            columns = [np.concatenate(parts) for parts in zip(*self._embeddings[name], strict=True)]
            retrieved = retrieval_metrics(*columns, names=output.names)
            result |= {f"{name}/{metric}": value for metric, value in retrieved.items()}
            # In-batch figures say nothing where the whole gallery was searched.
            result.pop(f"{name}/batch_accuracy")
        for name, (said, truth) in self._texts.items():
            if truth:
                result |= {f"{name}/{metric}": value for metric, value in text_metrics(said, truth).items()}
        result["loss"] = sum(weight * result[f"{name}/loss"] for name, weight in self._weights.items())
        return result
