"""What a model predicted on a split, example by example, and its usual figures."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from mmjax.data.inputs import Input
from mmjax.metrics.retrieval import rank_metrics, ranks
from mmjax.metrics.text import text_metrics
from mmjax.model import Multimodal
from mmjax.types import Average, Counts, Metrics


def truth_features(model: Multimodal) -> dict[str, str]:
    """The features that predictions are compared with, by output."""
    return {name: output.truth_feature for name, output in model.outputs.items() if output.truth_feature is not None}


def evaluated_outputs(model: Multimodal) -> set[str]:
    """The outputs whose predictions figures are computed from."""
    return {name for name, output in model.outputs.items() if output.truth_feature or output.aligned_modalities}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchResult:
    """A batch's averages, predictions by output, and what of the batch these are compared with.

    `truth` are values and, of what has places, which are real, by output; `present` says who has each feature.
    `tokens` are the ids of texts that outputs align.
    """

    metrics: Metrics
    predictions: dict[str, dict[str, Any]]
    truth: dict[str, tuple[Any, Any]]
    present: dict[str, Any]
    tokens: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """What a model predicted of E examples, named by `ids`, in their order.

    `metrics` keep what each example adds, where it is one of examples. `predictions`, `truth` and `present` are as
    those of `BatchResult`, of evaluated outputs but those that write: `texts` are the predicted and the true ones, of
    the examples that have a text. `targets` are the features that outputs predict, `pairs` the modalities they align,
    `weights` those of their losses, by output. `text_groups` has equal numbers for equal texts among those aligned.
    """

    ids: tuple[str, ...]
    metrics: Metrics
    predictions: dict[str, dict[str, np.ndarray]]
    truth: dict[str, tuple[np.ndarray, np.ndarray]]
    present: dict[str, Bool[np.ndarray, "E"]]
    texts: dict[str, tuple[list[str], list[str]]]
    targets: dict[str, str]
    pairs: dict[str, tuple[str, ...]]
    weights: dict[str, float]
    text_groups: dict[str, Int[np.ndarray, "E"]]

    def retrievals(self, output: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Retrieval in both directions between what an output aligns: its name, and the arguments of `ranks`.

        Where texts are retrieved, all that read like the right one are right; where others are retrieved by a text,
        all whose text reads like it.
        """
        for query, gallery in (self.pairs[output], self.pairs[output][::-1]):
            embeddings, present = (
                [each[side] for side in (query, gallery)] for each in (self.predictions[output], self.present)
            )
            groups = self.text_groups.get(gallery, self.text_groups.get(query))
            yield f"{query}_to_{gallery}", (*embeddings, *present, groups)

    def figures(self) -> dict[str, float]:
        """The usual ones, as "output/metric"."""
        result: dict[str, float] = {}
        for name, metric in self.metrics.items():
            result |= metric.figures(name)
        for name in self.pairs:
            for direction, arguments in self.retrievals(name):
                result |= rank_metrics(ranks(*arguments), f"{name}/{direction}")
            # In-batch figures say nothing where the whole gallery was searched.
            result.pop(f"{name}/batch_accuracy", None)
        for name, (predicted, truth) in self.texts.items():
            if truth:
                result |= {f"{name}/{metric}": value for metric, value in text_metrics(predicted, truth).items()}
        losses = [weight * result[f"{name}/loss"] for name, weight in self.weights.items() if f"{name}/loss" in result]
        if losses:
            result["loss"] = sum(losses)
        return result

    def subset(self, rows: Bool[np.ndarray, "E"]) -> "EvalResult":
        """The result on some of the examples, without metrics that are of all together or that none of them has."""
        metrics: Metrics = {
            name: Average(metric.totals[rows], metric.weights[rows])
            for name, metric in self.metrics.items()
            if isinstance(metric, Average) and np.ndim(metric.totals) and metric.weights[rows].any()
        }
        texts: dict[str, tuple[list[str], list[str]]] = {}
        for name, (predicted, true) in self.texts.items():
            places = np.flatnonzero(rows[self.present[self.targets[name]]])
            texts[name] = [predicted[place] for place in places], [true[place] for place in places]
        arrays = (self.predictions, self.truth, self.present, self.text_groups)
        predictions, truth, present, groups = jax.tree.map(lambda array: array[rows], arrays)
        pairs = {name: pair for name, pair in self.pairs.items() if np.all([present[each] for each in pair], 0).any()}
        return dataclasses.replace(
            self,
            ids=tuple(id for id, kept in zip(self.ids, rows, strict=True) if kept),
            metrics=metrics,
            predictions=predictions,
            truth=truth,
            present=present,
            texts=texts,
            pairs=pairs,
            text_groups=groups,
        )

    def figures_of_parts(self, part_of: Callable[[str], str]) -> dict[str, float]:
        """The usual ones of each source of a mixture, as "source/output/metric"."""
        parts = np.array([part_of(id) for id in self.ids])
        subsets = {part: self.subset(parts == part) for part in dict.fromkeys(parts.tolist()) if part}
        return {f"{part}/{name}": value for part, each in subsets.items() for name, value in each.figures().items()}


class ResultCollector:
    """Collects the results of one model's batches."""

    def __init__(self, model: Multimodal, inputs: Mapping[str, Input]):
        self._outputs, self._inputs, self._weights = dict(model.outputs.items()), inputs, model.weights
        self._targets = truth_features(model)
        self._writers = [name for name, output in self._outputs.items() if output.writes_text]
        self._evaluated = evaluated_outputs(model) - set(self._writers)
        self._texts: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in self._writers}
        self._ids: list[str] = []
        self._parts: list[tuple[Metrics, Any, Any, Any, Any]] = []

    def add(self, ids: tuple[str, ...], batch: BatchResult) -> None:
        """A batch's result, on the host; the places of padding have no name."""
        rows = np.flatnonzero([bool(name) for name in ids])
        size = len(ids)
        self._ids.extend(ids[row] for row in rows)

        def real(array: np.ndarray) -> np.ndarray:
            return array[rows] if np.ndim(array) and len(array) == size else array

        metrics: Metrics = {
            name: Average(real(metric.totals), real(metric.weights)) if isinstance(metric, Average) else metric
            for name, metric in batch.metrics.items()
        }
        present, truth, tokens = jax.tree.map(lambda array: array[rows], (batch.present, batch.truth, batch.tokens))
        for name in self._writers:
            target = self._targets[name]
            both = batch.predictions[name]["ids"][rows], truth.pop(name)[0]
            for texts, ids_of_texts in zip(self._texts[name], both, strict=True):
                examples = np.flatnonzero(present[target])
                texts.extend(self._inputs[target].to_raw({"ids": ids_of_texts[row]}) for row in examples)
        predictions = {name: made for name, made in batch.predictions.items() if name in self._evaluated}
        self._parts.append((metrics, jax.tree.map(lambda array: array[rows], predictions), truth, present, tokens))

    def result(self) -> EvalResult:
        """That of all batches."""
        parts, *rest = zip(*self._parts, strict=True)
        predictions, truth, present, tokens = (
            jax.tree.map(lambda *arrays: np.concatenate(arrays), *part) for part in rest
        )
        groups = {name: _number(texts, present[name]) for name, texts in tokens.items()}
        pairs = {name: output.aligned_modalities for name, output in self._outputs.items() if output.aligned_modalities}
        metrics = {name: _whole([part[name] for part in parts]) for name in parts[0]}
        about = (self._texts, self._targets, pairs, self._weights)
        return EvalResult(tuple(self._ids), metrics, predictions, truth, present, *about, groups)


def _number(texts: Int[np.ndarray, "E N"], present: Bool[np.ndarray, "E"]) -> Int[np.ndarray, "E"]:
    """Equal numbers for equal texts, and a number of its own for each text that is absent."""
    numbers = np.unique(texts, axis=0, return_inverse=True)[1].reshape(-1)
    return np.where(present, numbers, len(texts) + np.arange(len(texts)))


def _whole(parts: list[Average | Counts]) -> Average | Counts:
    """The metric of all batches: of every example, where batches have that."""
    if isinstance(parts[0], Average) and np.ndim(parts[0].totals):
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return jax.tree.map(lambda *arrays: np.sum(arrays, 0), *parts)
