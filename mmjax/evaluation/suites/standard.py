"""The suite `standard`: the metrics of every output from one pass over the split."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import chz
import jax
import numpy as np
from jaxtyping import Int

from mmjax.evaluation.captions import evaluate_more_texts, retrievals
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.evaluation.suites.base import Suite
from mmjax.metrics.retrieval import RECALLS, has_match, sharded_ranks
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.text import text_statistics
from mmjax.model import Multimodal
from mmjax.reports.page import Section, Table
from mmjax.reports.plots import confusion_svg, reliability_svg
from mmjax.types import Average, Metrics

LARGEST_CONFUSION = 64  # classes of a matrix that is drawn
SHOWN_TEXTS = 12
# Reported of every condition of `robustness` and every slice.
KEY_METRICS = ("accuracy", "absolute_error", "exact", "word_error", "loss")


@chz.chz
class Standard(Suite):
    """The metrics of every output, from one pass over the split."""

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult:
        return evaluate_standard(context, checkpoint)


def evaluate_standard(context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult:
    """The result of `Standard`, computed once for all suites that read it."""
    results = checkpoint.suite_results
    if "standard" not in results:
        more = evaluate_more_texts(context, checkpoint.evaluator, checkpoint.model)
        results["standard"] = standard_metrics(context, checkpoint.model, checkpoint.result, more)
    return results["standard"]


def key_metrics(result: SuiteResult) -> dict[str, Statistic]:
    """The few metrics that sum outputs up, those of "output/metric" and none of their parts."""
    names = (name for name in result.statistics if name.count("/") == 1 and name.rpartition("/")[2] in KEY_METRICS)
    return {name: result.statistics[name] for name in names}


def standard_metrics(
    context: EvalContext,
    model: Multimodal,
    result: EvalResult,
    more_texts: Mapping[str, Sequence[EvalResult]] = MappingProxyType({}),
) -> SuiteResult:
    """All metrics of a model's predictions, with intervals over the split's clusters.

    Of every output its own averages and its `statistics`; of texts see `text_statistics`; of aligned modalities recall
    at 1, 5 and 10 and the median rank, in both directions, the whole split being the gallery. `more_texts` are the
    results on further texts of the examples (see `mmjax.evaluation.captions`).
    """
    result = dataclasses.replace(result, metrics=_regrouped(context, model, result))
    statistics, figures = _averages(result)
    sections: list[Section] = []
    for name, predictions in result.predictions.items():
        if name in result.pairs:
            recalls, medians = _retrieval(context, name, result, more_texts)
            statistics, figures = statistics | recalls, figures | medians
            continue
        truth, real = result.truth[name]
        feature = context.features[result.targets[name]]
        found = model.outputs[name].statistics(predictions, truth, real, feature)
        statistics |= {f"{name}/{metric}": statistic for metric, statistic in found.items()}
        if feature.classes and "probabilities" in predictions and real.any():
            sections.append(_class_section(name, feature.classes, predictions["probabilities"], truth, real))
    for name, (predicted, true) in result.texts.items():
        if true:
            there = result.present[result.targets[name]]
            for metric, statistic in text_statistics(predicted, true).items():
                statistics[f"{name}/{metric}"] = statistic.expand(there)
            sections.append(_text_section(name, predicted, true))
    return SuiteResult(statistics, figures, sections).clustered(context.clusters)


def _averages(result: EvalResult) -> tuple[dict[str, Statistic], dict[str, Metric]]:
    """The averages that outputs compute themselves, and the weighted sum of their losses."""
    statistics: dict[str, Statistic] = {}
    figures: dict[str, Metric] = {}
    for name, metric in result.metrics.items():
        if isinstance(metric, Average) and np.ndim(metric.totals):
            statistics[name] = Statistic.ratio(metric.totals, metric.weights)
        elif not name.startswith("fusion/"):  # the fusion's own losses are of whatever batches there happened to be
            values = metric.figures(name).items()
            figures |= {figure: Metric(value, None, None, len(result.ids)) for figure, value in values}
    losses = [statistics[f"{name}/loss"] for name in result.weights if f"{name}/loss" in statistics]
    if len(losses) == len(result.weights):
        weights = np.array(list(result.weights.values()))
        columns = np.concatenate([loss.columns for loss in losses], 1)
        statistics["loss"] = Statistic(columns, lambda sums: _weighted(sums, weights))
    return statistics, figures


def _weighted(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratios of neighbouring columns, 0 of nothing, weighted and added."""
    totals, counts = sums[:, ::2], sums[:, 1::2]
    return (totals / np.where(counts == 0, 1, counts)) @ weights


def _regrouped(context: EvalContext, model: Multimodal, result: EvalResult) -> Metrics:
    """The metrics with the losses of aligned pairs in groups of as many examples as training compares.

    A batch of an evaluation has as many as there are devices for; these are the same on any number of devices.
    """
    metrics, size = dict(result.metrics), context.group_size
    for name, modalities in result.pairs.items():
        del metrics[f"{name}/batch_accuracy"]
        output = model.outputs[name]
        first, second = (result.predictions[name][modality] for modality in modalities)
        there = result.present[modalities[0]] & result.present[modalities[1]]
        compare = jax.jit(lambda output, *given: output.pairwise_losses(*given, rows=None))
        losses = []
        for begin in range(0, len(there), size):
            some = [array[begin : begin + size] for array in (first, second, there)]
            missing = size - len(some[-1])
            padded = [np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)]) for array in some]
            placed = [jax.device_put(array, context.rules.spec(*[None] * array.ndim)) for array in padded]
            losses.append(jax.device_get(compare(output, *placed)[0])[: size - missing])
        totals = np.where(there, np.concatenate(losses), 0)
        metrics[f"{name}/loss"] = Average(totals, there.astype(np.float32))
    return metrics


def _retrieval(
    context: EvalContext, name: str, result: EvalResult, more_texts: Mapping[str, Sequence[EvalResult]]
) -> tuple[dict[str, Statistic], dict[str, Metric]]:
    """Recalls and median ranks of aligned modalities, in both directions."""
    statistics, figures = {}, {}
    several = [modality for modality in result.pairs[name] if modality in more_texts]
    if len(several) == 1:
        directions = retrievals(result, name, more_texts[several[0]], several[0])
    else:
        directions = result.retrievals(name)
    for direction, arguments in directions:
        ranks, queries = sharded_ranks(*arguments, rules=context.rules), has_match(*arguments[2:])
        for k in RECALLS:
            hits = np.zeros(len(queries))
            hits[queries] = ranks <= k
            # An example's queries: itself, or each of its texts.
            by_example = [array.reshape(len(result.ids), -1).sum(1) for array in (hits, queries)]
            statistics[f"{name}/{direction}_recall@{k}"] = Statistic.ratio(*by_example)
        if len(ranks):
            figures[f"{name}/{direction}_median_rank"] = median_figure(ranks)
    return statistics, figures


def median_figure(values: np.ndarray) -> Metric:
    """The median of independent values with its distribution-free 95% interval.

    These are the largest l and smallest u with P(l <= X < u) >= 0.95, X the binomial number of values below the median
    (David & Nagaraja 2003, "Order Statistics", section 7.1); no distribution is assumed.
    """
    from scipy.stats import binom

    count, ordered = len(values), np.sort(values)
    low = max(int(binom.ppf(0.025, count, 0.5)), 1)
    return Metric(float(np.median(values)), float(ordered[low - 1]), float(ordered[count - low]), count)


def _class_section(
    name: str, classes: tuple[str, ...], probabilities: np.ndarray, truth: np.ndarray, real: np.ndarray
) -> Section:
    """The confusion matrix, the reliability and the metrics of every class."""
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (truth[real], probabilities.argmax(-1)[real]), 1)
    drawings = [reliability_svg(probabilities[real], truth[real])]
    if len(classes) <= LARGEST_CONFUSION:
        drawings.insert(0, confusion_svg(confusion, classes))
    about = (
        "How often each class is predicted as which, and how often predictions of some confidence are right. Metrics "
        "called calibrated are of probabilities made more or less confident by one temperature, learned on the other "
        "half of the examples."
    )
    return Section(name, about, [class_table(classes, confusion)], drawings)


def class_table(classes: Sequence[str], confusion: Int[np.ndarray, "K K"]) -> Table:
    """Recall, precision and F1 of every class; rows of the confusion matrix are true classes."""
    counts = zip(
        classes, confusion.sum(1).tolist(), confusion.sum(0).tolist(), confusion.diagonal().tolist(), strict=True
    )
    rows = [
        [name, f"{true:,}", _share(hits, true), _share(hits, predicted), _share(2 * hits, true + predicted)]
        for name, true, predicted, hits in counts
    ]
    return Table(["class", "examples", "recall", "precision", "F1"], rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else ""


def _text_section(name: str, predicted: list[str], truth: list[str]) -> Section:
    """Some texts beside the true ones, wrong ones first."""
    order = sorted(range(len(predicted)), key=lambda row: predicted[row].split() == truth[row].split())
    rows = [[truth[row], predicted[row] or "(nothing)"] for row in order[:SHOWN_TEXTS]]
    wrong = sum(one.split() != other.split() for one, other in zip(predicted, truth, strict=True))
    about = f"{wrong} of {len(predicted)} texts differ from the true one."
    return Section(name, about, [Table(["true", "predicted"], rows)])
