"""The standard suite: everything that one pass over a split says of every output."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.heads.contrast import ContrastHead
from mmjax.metrics.classification import classification_statistics, cross_fit_temperatures
from mmjax.metrics.regression import regression_statistics
from mmjax.metrics.retrieval import RECALLS, answerable, sharded_ranks
from mmjax.metrics.statistics import Statistic
from mmjax.metrics.text import text_statistics
from mmjax.model import Multimodal
from mmjax.reports.page import Section, Table
from mmjax.reports.plots import confusion_svg, reliability_svg
from mmjax.sharding.rules import Rules
from mmjax.types import Average, Feature, Label, Metrics

MOST_DRAWN = 64  # classes of a confusion matrix
SHOWN_TEXTS = 12


# What is said of every condition and every kind of examples.
KEY_FIGURES = ("accuracy", "absolute_error", "exact", "word_error", "loss")


def key_figures(findings: SuiteResult) -> dict[str, Statistic]:
    """The few figures that sum outputs up, those of "output/figure" and none of their parts."""
    names = (name for name in findings.statistics if name.count("/") == 1 and name.rpartition("/")[2] in KEY_FIGURES)
    return {name: findings.statistics[name] for name in names}


def judge_standard(
    model: Multimodal, outcome: EvalResult, features: Mapping[str, Feature], group: int, rules: Rules
) -> SuiteResult:
    """All figures of what a model did; alignments are compared in groups of so many.

    Of every output its own averages; of classes see `classification_statistics`, of quantities
    `regression_statistics`, of texts `text_statistics`; of alignments recall at 1, 5 and 10 and the median rank, both
    ways, the whole split being the gallery.
    """
    outcome = dataclasses.replace(outcome, metrics=_comparable(model, outcome, group, rules))
    statistics, figures = _averages(outcome)
    parts: list[Section] = []
    for name, said in outcome.predictions.items():
        if name in outcome.pairs:
            recalls, medians = _retrieval(name, outcome, rules)
            statistics, figures = statistics | recalls, figures | medians
            continue
        truth, real = outcome.truth[name]
        feature = features[outcome.targets[name]]
        if not isinstance(feature, Label):
            found = regression_statistics(said["mean"], said["deviation"], truth, real)
        else:
            given = said["probabilities"], truth, real
            found = classification_statistics(*given, feature.names, cross_fit_temperatures(*given))
            if real.any():
                parts.append(_classes(name, feature.names, *given))
        statistics |= {f"{name}/{figure}": statistic for figure, statistic in found.items()}
    for name, (written, texts) in outcome.texts.items():
        if texts:
            there = outcome.present[outcome.targets[name]]
            for figure, statistic in text_statistics(written, texts).items():
                statistics[f"{name}/{figure}"] = statistic.spread(there)
            parts.append(_texts(name, written, texts))
    return SuiteResult(statistics, figures, parts)


def _averages(outcome: EvalResult) -> tuple[dict[str, Statistic], dict[str, Metric]]:
    """What the outputs averaged themselves, and the weighted sum of their losses."""
    statistics: dict[str, Statistic] = {}
    figures: dict[str, Metric] = {}
    for name, metric in outcome.metrics.items():
        if isinstance(metric, Average) and np.ndim(metric.totals):
            statistics[name] = Statistic.ratio(metric.totals, metric.weights)
        elif not name.startswith("fusion/"):  # the fusion's own losses are of whatever batches there happened to be
            values = metric.figures(name).items()
            figures |= {figure: Metric(value, None, None, len(outcome.ids)) for figure, value in values}
    losses = [statistics[f"{name}/loss"] for name in outcome.weights if f"{name}/loss" in statistics]
    if len(losses) == len(outcome.weights):
        weights = np.array(list(outcome.weights.values()))
        columns = np.concatenate([loss.columns for loss in losses], 1)
        statistics["loss"] = Statistic(columns, lambda sums: _weighted(sums, weights))
    return statistics, figures


def _weighted(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratios of neighbouring columns, 0 of nothing, weighted and added."""
    totals, counts = sums[:, ::2], sums[:, 1::2]
    return (totals / np.where(counts == 0, 1, counts)) @ weights


def _comparable(model: Multimodal, outcome: EvalResult, group: int, rules: Rules) -> Metrics:
    """The metrics with the losses of alignments as they are in groups of as many examples as training compares.

    A batch of an evaluation has as many as there are devices for; these are the same on any number of devices.
    """
    metrics = dict(outcome.metrics)
    for name, names in outcome.pairs.items():
        del metrics[f"{name}/batch_accuracy"]
        head = model.outputs[name]
        assert isinstance(head, ContrastHead)
        sides = [outcome.predictions[name][side] for side in names]
        there = outcome.present[names[0]] & outcome.present[names[1]]
        compare = jax.jit(lambda head, *given: head.compare(*given, rows=None))
        losses = []
        for begin in range(0, len(there), group):
            some = [array[begin : begin + group] for array in (*sides, there)]
            missing = group - len(some[-1])
            padded = [np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)]) for array in some]
            placed = [jax.device_put(array, rules.spec(*[None] * array.ndim)) for array in padded]
            losses.append(jax.device_get(compare(head, *placed)[0])[: group - missing])
        totals = np.where(there, np.concatenate(losses), 0)
        metrics[f"{name}/loss"] = Average(totals, there.astype(np.float32))
    return metrics


def _retrieval(name: str, outcome: EvalResult, rules: Rules) -> tuple[dict[str, Statistic], dict[str, Metric]]:
    """Recalls and median ranks of an alignment, both ways."""
    statistics, figures = {}, {}
    for way, given in outcome.ways(name):
        found, asked = sharded_ranks(*given, rules=rules), answerable(*given[2:])
        for k in RECALLS:
            hits = np.zeros(len(asked))
            hits[asked] = found <= k
            statistics[f"{name}/{way}_recall@{k}"] = Statistic.ratio(hits, asked)
        if len(found):
            figures[f"{name}/{way}_median_rank"] = median_figure(found)
    return statistics, figures


def median_figure(values: np.ndarray) -> Metric:
    """The median of independent values, with the order statistics between which that of all lies in 95% of cases.

    These are the largest l and smallest u with P(l <= X < u) >= 0.95, X the binomial number of values below the median
    (David & Nagaraja 2003, "Order Statistics", section 7.1); no distribution is assumed.
    """
    from scipy.stats import binom

    count, ordered = len(values), np.sort(values)
    low = max(int(binom.ppf(0.025, count, 0.5)), 1)
    return Metric(float(np.median(values)), float(ordered[low - 1]), float(ordered[count - low]), count)


def _classes(
    name: str,
    names: tuple[str, ...],
    probabilities: np.ndarray,
    truth: np.ndarray,
    real: np.ndarray,
) -> Section:
    """What a page shows of answers from a list of classes."""
    said = probabilities.argmax(-1)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (truth[real], said[real]), 1)
    rows = [
        [kind, f"{count:,}", _share(hits, count), _share(hits, guessed)]
        for kind, count, hits, guessed in zip(
            names, confusion.sum(1).tolist(), confusion.diagonal().tolist(), confusion.sum(0).tolist(), strict=True
        )
    ]
    drawings = [reliability_svg(probabilities[real], truth[real], f"{name}-reliability")]
    if len(names) <= MOST_DRAWN:
        drawings.insert(0, confusion_svg(confusion, names, f"{name}-confusion"))
    about = (
        "How often each class is taken for which, and how often answers of some confidence are right. Figures called "
        "calibrated are of probabilities made more or less confident by one temperature, learned on the other half of "
        "the examples."
    )
    return Section(name, about, [Table(["class", "examples", "found", "right if said"], rows)], drawings)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else ""


def _texts(name: str, said: list[str], truth: list[str]) -> Section:
    """Some texts beside the true ones, wrong ones first."""
    order = sorted(range(len(said)), key=lambda row: said[row].split() == truth[row].split())
    rows = [[truth[row], said[row] or "(nothing)"] for row in order[:SHOWN_TEXTS]]
    wrong = sum(one.split() != other.split() for one, other in zip(said, truth, strict=True))
    return Section(name, f"{wrong} of {len(said)} texts are not the true one.", [Table(["true", "said"], rows)])
