"""What a model did on a split, example by example, and its usual figures."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from mmjax.data.inputs import Input, TextInput
from mmjax.generators.text import TextWriter
from mmjax.heads.classify import ClassifyHead
from mmjax.heads.contrast import ContrastHead
from mmjax.heads.regress import RegressHead
from mmjax.metrics.retrieval import rank_metrics, ranks
from mmjax.metrics.text import text_metrics
from mmjax.model import Multimodal
from mmjax.types import Average, Counts, Metrics

# Outputs whose predictions are compared with what is true.
JUDGED = ClassifyHead | RegressHead | ContrastHead | TextWriter


def targets_of(model: Multimodal) -> dict[str, str]:
    """What judged outputs say, by output; alignments say nothing."""
    saying = ClassifyHead | RegressHead | TextWriter
    return {name: output.target for name, output in model.outputs.items() if isinstance(output, saying)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What a model makes of a batch: averages, predictions by output, and of the batch what these are compared with.

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
    """What a model did on E examples, named by `ids`, in their order.

    `metrics` keep what each example adds, where examples can be told apart. `predictions`, `truth` and `present` are as
    those of `Evaluated`, of judged outputs but those that write: `texts` are what these said and what is true, of the
    examples that have a text. `targets` are what outputs say, `pairs` what they align, `weights` what their losses
    count, by output. `same` tells equal texts among those aligned by equal numbers.
    """

    ids: tuple[str, ...]
    metrics: Metrics
    predictions: dict[str, dict[str, np.ndarray]]
    truth: dict[str, tuple[np.ndarray, np.ndarray]]
    present: dict[str, Bool[np.ndarray, "E"]]
    texts: dict[str, tuple[list[str], list[str]]]
    targets: dict[str, str]
    pairs: dict[str, tuple[str, str]]
    weights: dict[str, float]
    same: dict[str, Int[np.ndarray, "E"]]

    def ways(self, output: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Both ways of retrieval between what an output aligns, each by its name and what `ranks` is given.

        Where texts are looked for, all that read like the right one are right; where others are looked for by a text,
        all whose text reads like it.
        """
        for query, gallery in (self.pairs[output], self.pairs[output][::-1]):
            embeddings, present = (
                [each[side] for side in (query, gallery)] for each in (self.predictions[output], self.present)
            )
            yield f"{query}_to_{gallery}", (*embeddings, *present, self.same.get(gallery, self.same.get(query)))

    def figures(self) -> dict[str, float]:
        """The usual ones, as "output/metric"."""
        result: dict[str, float] = {}
        for name, metric in self.metrics.items():
            result |= metric.figures(name)
        for name in self.pairs:
            for way, given in self.ways(name):
                result |= rank_metrics(ranks(*given), f"{name}/{way}")
            # In-batch figures say nothing where the whole gallery was searched.
            result.pop(f"{name}/batch_accuracy")
        for name, (said, truth) in self.texts.items():
            if truth:
                result |= {f"{name}/{metric}": value for metric, value in text_metrics(said, truth).items()}
        result["loss"] = sum(weight * result[f"{name}/loss"] for name, weight in self.weights.items())
        return result


class ResultCollector:
    """Puts together what one model did, batch by batch."""

    def __init__(self, model: Multimodal, inputs: Mapping[str, Input]):
        self._outputs, self._inputs, self._weights = dict(model.outputs.items()), inputs, model.weights
        self._targets = targets_of(model)
        self._writers = {name: part for name, part in self._outputs.items() if isinstance(part, TextWriter)}
        self._texts: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in self._writers}
        self._ids: list[str] = []
        self._parts: list[tuple[Metrics, Any, Any, Any, Any]] = []

    def add(self, ids: tuple[str, ...], answers: Evaluated) -> None:
        """A batch's answers, on the host; the places of padding have no name."""
        rows = np.flatnonzero([bool(name) for name in ids])
        size = len(ids)
        self._ids.extend(ids[row] for row in rows)

        def real(array: np.ndarray) -> np.ndarray:
            return array[rows] if np.ndim(array) and len(array) == size else array

        metrics = {
            name: Average(real(metric.totals), real(metric.weights)) if isinstance(metric, Average) else metric
            for name, metric in answers.metrics.items()
        }
        present, truth, tokens = jax.tree.map(
            lambda array: array[rows], (answers.present, answers.truth, answers.tokens)
        )
        for name, writer in self._writers.items():
            input = self._inputs[writer.target]
            assert isinstance(input, TextInput)
            both = answers.predictions[name]["ids"][rows], truth.pop(name)[0]
            for texts, written in zip(self._texts[name], both, strict=True):
                texts.extend(input.decode(written[row]) for row in np.flatnonzero(present[writer.target]))
        judged = {
            name: said
            for name, said in answers.predictions.items()
            if isinstance(self._outputs[name], JUDGED) and name not in self._writers
        }
        self._parts.append((metrics, jax.tree.map(lambda array: array[rows], judged), truth, present, tokens))

    def result(self) -> EvalResult:
        """All of it."""
        parts, *rest = zip(*self._parts, strict=True)
        predictions, truth, present, tokens = (
            jax.tree.map(lambda *arrays: np.concatenate(arrays), *part) for part in rest
        )
        same = {name: _number(texts, present[name]) for name, texts in tokens.items()}
        pairs = {name: part.names for name, part in self._outputs.items() if isinstance(part, ContrastHead)}
        metrics = {name: _whole([part[name] for part in parts]) for name in parts[0]}
        about = (self._texts, self._targets, pairs, self._weights)
        return EvalResult(tuple(self._ids), metrics, predictions, truth, present, *about, same)


def _number(texts: Int[np.ndarray, "E N"], present: Bool[np.ndarray, "E"]) -> Int[np.ndarray, "E"]:
    """Equal numbers for equal texts, and a number of its own for each text that is absent."""
    numbers = np.unique(texts, axis=0, return_inverse=True)[1].reshape(-1)
    return np.where(present, numbers, len(texts) + np.arange(len(texts)))


def _whole(parts: list[Average | Counts]) -> Average | Counts:
    """The metric of all batches: of every example, where batches have that."""
    if isinstance(parts[0], Average) and np.ndim(parts[0].totals):
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return jax.tree.map(lambda *arrays: np.sum(arrays, 0), *parts)
