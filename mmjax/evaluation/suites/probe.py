"""The suite `probe`: how well labels are predicted from frozen features."""

import functools
from collections.abc import Callable
from typing import Any

import chz
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.data.device_batches import shapes
from mmjax.data.loader import Loader
from mmjax.errors import UserError
from mmjax.evaluation import intermediates
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.base import Suite, at_least_one
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.transfer import few_shot, k_nearest, linear_probe
from mmjax.model import Multimodal
from mmjax.reports.page import Section, Table
from mmjax.sharding.rules import Rules
from mmjax.types import Batch

SHOTS = (1, 5, 10)
TITLE = "Probes of features"
ABOUT = (
    "Accuracies of classifiers of a label that are fitted to frozen features of training examples: a linear probe, the "
    "nearest neighbours, and the nearest mean of 1, 5 and 10 examples of each class, on average over several draws of "
    "these. Intervals are about the test examples, not about the examples fitted to."
)


@chz.chz
class Probe(Suite):
    """How well labels are predicted from frozen features: linear probes, nearest neighbours, few shots.

    As "probe/INTERMEDIATE/LABEL/METRIC":

    linear_accuracy      by a linear probe
    nearest_accuracy     by the nearest neighbours
    few_shot_K_accuracy  from K examples of each class, K = 1, 5, 10, on average over draws of these; its interval is
                         about the test examples, whatever is drawn

    See `mmjax.metrics.transfer` for these and `mmjax.evaluation.intermediates` for the names in `at`. They are fitted
    to evenly spread examples of the train split, unaugmented, and tested on the whole split. Each of a label's slots is
    a task of its own, whose answers count together; a slot, or a label, that one of the splits has no example of is
    left out. An example without the modality that an intermediate is of counts, too: its vector is zero.
    """

    at: tuple[str, ...] = chz.field(default=("pooled",), doc="intermediates that are probed, such as encoders/image")
    labels: tuple[str, ...] | None = chz.field(default=None, doc="labels that are predicted; None: all of the data")
    examples: int = chz.field(
        default=4096, validator=at_least_one, doc="training examples that probes are fitted to, at most"
    )

    @property
    def missing(self) -> str:
        return "this run's data have no labels"

    def is_key(self, metric: str) -> bool:
        return metric.endswith("/linear_accuracy")

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult | None:
        if self.labels is None and not label_names(context):
            return None
        return probe(context, checkpoint.model, self)


def label_names(context: EvalContext) -> list[str]:
    """The labels of the data."""
    return [name for name, feature in context.features.items() if feature.classes]


def probe(context: EvalContext, model: Multimodal, options: Probe) -> SuiteResult:
    """See `Probe`.

    Raises:
        UserError: for an intermediate or a label that there is not; where no label is left; where features are not
            finite.
    """
    able = label_names(context)
    labels = able if options.labels is None else options.labels
    for name in labels:
        if name not in able:
            raise UserError(f"there is no label {name} to probe; there are {', '.join(able) or 'none'}")
    # What neither the model nor a probe reads need not be read from the disk.
    context = context.with_inputs({*model.encoders, *labels})
    rules, at = context.rules, options.at
    there = intermediates.names(model, shapes(context.features, context.batch_size, context.sharding), rules=rules)
    unknown = [name for name in at if name not in there]
    if unknown or not at:
        which = f"intermediate {unknown[0]}" if unknown else "probe of no intermediate"
        raise UserError(f"there is no {which}; the model has {', '.join(there)}")
    step = functools.partial(jax.jit(functools.partial(_look, at=tuple(at), labels=tuple(labels), rules=rules)), model)
    (train, train_truth), (test, test_truth) = (
        collect(context, step, loader)
        for loader in (context.loader("train", examples=options.examples), context.loader())
    )

    statistics: dict[str, Statistic] = {}
    table: dict[str, dict[str, str]] = {name: {} for name in at}
    for label in labels:
        classes = len(context.features[label].classes)
        for name in at:
            found = _fit(train[name], train_truth[label], test[name], test_truth[label], classes)
            for metric, statistic in found.items():
                statistics[f"probe/{name}/{label}/{metric}"] = statistic
                table[name][f"{label} {metric.removesuffix('_accuracy').replace('_', ' ')}"] = f"{statistic.value:.4f}"
    if not statistics:
        raise UserError(f"{context.split} and train have no example with {', '.join(labels) or 'a label'} to probe")
    rows = [[name, *cells.values()] for name, cells in table.items()]
    return SuiteResult(statistics, {}, [Section(TITLE, ABOUT, [Table(["intermediate", *table[at[0]]], rows)])])


# Classes by slot, and which slots have one.
Truth = tuple[Int[np.ndarray, "_ S"], Bool[np.ndarray, "_ S"]]


def _look(
    model: Multimodal, batch: Batch, *, at: tuple[str, ...], labels: tuple[str, ...], rules: Rules
) -> tuple[dict[str, Array], dict[str, tuple[Array, Array]]]:
    """Intermediates and labels of a batch, whole on every device."""
    found = intermediates.intermediates(model, batch, rules=rules)
    return {name: found[name] for name in at}, rules.gather({name: label_truth(batch, name) for name in labels})


def label_truth(batch: Batch, label: str) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    """The classes of a label, and which of its slots have one."""
    return batch.values[label], batch.mask[label] & batch.present[label][:, None]


def collect(context: EvalContext, step: Callable[[Batch], Any], loader: Loader) -> Any:
    """What a step computes of every example of a loader, none of padding, on the host."""
    parts = []
    with context.prefetch(loader) as feed:
        for placed in feed:
            real = np.array([bool(name) for name in placed.host.ids])
            parts.append(_some(jax.device_get(step(placed.batch)), real))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _some(tree: Any, rows: Bool[np.ndarray, "B"]) -> Any:
    return jax.tree.map(lambda array: array[rows], tree)


def _fit(
    train: Float[np.ndarray, "N D"], train_truth: Truth, test: Float[np.ndarray, "E D"], test_truth: Truth, classes: int
) -> dict[str, Statistic]:
    """The metrics of one intermediate and one label; none where no slot is real in both splits."""
    for features in (train, test):
        if not np.isfinite(features).all():
            raise UserError("features to probe are not finite: the model that they are from diverged")
    totals: dict[str, np.ndarray] = {}
    counts = np.zeros(len(test))
    for slot in range(train_truth[0].shape[1]):
        seen, real = (each[1][:, slot] for each in (train_truth, test_truth))
        if not seen.any() or not real.any():
            continue
        truth = test_truth[0][real, slot]
        given = train[seen], train_truth[0][seen, slot], test[real]
        right = {
            "linear_accuracy": linear_probe(*given, classes).argmax(1) == truth,
            "nearest_accuracy": k_nearest(*given, classes).argmax(1) == truth,
        } | {f"few_shot_{shots}_accuracy": few_shot(*given, truth, shots) for shots in SHOTS}
        for name, share in right.items():
            totals.setdefault(name, np.zeros(len(test)))[real] += share
        counts[real] += 1
    return {name: Statistic.ratio(total, counts) for name, total in totals.items()}
