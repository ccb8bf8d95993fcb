"""Two models on the same examples: differences of metrics with intervals, and disagreements."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from mmjax.data.loader import Loader
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.standard import KEY_METRICS
from mmjax.metrics.statistics import LESS_IS_BETTER, Difference, Statistic, compare_paired, holm
from mmjax.reports.gallery import draw_feature
from mmjax.reports.page import Card, Section, Table

SHOWN = 6
# Below this adjusted p-value a difference is significant.
SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model's predictions and its standard metrics; `name` is what a page calls it."""

    name: str
    step: int
    result: EvalResult
    standard: SuiteResult


@dataclasses.dataclass(frozen=True)
class Compared(Difference):
    """A difference of two figures, and its p-value adjusted for all that were compared (Holm 1979)."""

    first: float
    second: float
    adjusted_p_value: float


def compare_metrics(first: Contender, second: Contender) -> dict[str, Compared]:
    """first - second of all metrics that both have; see `mmjax.metrics.statistics.compare_paired`.

    Of metrics that are the same number by two names, as the loss of all outputs and of the only one are, one is kept.
    """
    ours, theirs = first.standard.statistics, second.standard.statistics
    names: list[str] = []
    # Those of an output before those of all, and shorter names first.
    for name in sorted(ours, key=lambda each: (each == "loss", len(each), each)):
        comparable = name in theirs and ours[name].columns.shape == theirs[name].columns.shape and ours[name].examples
        if comparable and not any(_same(ours, name, other) and _same(theirs, name, other) for other in names):
            names.append(name)
    found = [compare_paired(ours[name], theirs[name]) for name in names]
    adjusted = holm(np.array([difference.p_value for difference in found]))
    return {
        name: Compared(
            **dataclasses.asdict(difference),
            first=ours[name].value,
            second=theirs[name].value,
            adjusted_p_value=float(p_value),
        )
        for name, difference, p_value in zip(names, found, adjusted, strict=True)
    }


def disagreements(first: Contender, second: Contender, context: EvalContext) -> list[Section]:
    """Examples on which one is right and the other is not, by output that predicts classes."""
    sections = []
    for name, predictions in first.result.predictions.items():
        others = second.result.predictions.get(name, {})
        if "probabilities" not in predictions or "probabilities" not in others:
            continue
        ours, theirs = (_right(contender.result, name) for contender in (first, second))
        counted = first.result.truth[name][1].any(1)
        only = {first.name: counted & ours & ~theirs, second.name: counted & theirs & ~ours}
        rows = [["both are right", f"{int((counted & ours & theirs).sum()):,}"]]
        rows += [[f"only {who} is right", f"{int(which.sum()):,}"] for who, which in only.items()]
        rows += [["neither is right", f"{int((counted & ~ours & ~theirs).sum()):,}"]]
        cards = [
            _card(context, index, f"only {who} is right", _answers((first, second), name, index, context))
            for who, which in only.items()
            for index in np.flatnonzero(which)[:SHOWN]
        ]
        sections.append(Section(name, "", [Table(["", "examples"], rows)], (), cards))
    return sections


def _right(result: EvalResult, name: str) -> Bool[np.ndarray, "E"]:
    """Whether every slot of an example is predicted right."""
    truth, real = result.truth[name]
    return ((result.predictions[name]["probabilities"].argmax(-1) == truth) | ~real).all(1)


def _answers(contenders: Sequence[Contender], name: str, index: np.integer, context: EvalContext) -> list[str]:
    """The true and the predicted classes of an example."""
    truth, real = contenders[0].result.truth[name]
    names = context.features[contenders[0].result.targets[name]].classes
    classes = {"true": truth[index]}
    for contender in contenders:
        classes[contender.name] = contender.result.predictions[name]["probabilities"][index].argmax(-1)
    return [f"{who}: {', '.join(names[kind] for kind in each[real[index]])}" for who, each in classes.items()]


def _card(context: EvalContext, index: np.integer, title: str, lines: Sequence[str]) -> Card:
    """What a page shows of an example."""
    host = Loader(context.data, context.data_dir, context.split, 1).batch(int(index))
    pictures, words = [], []
    for name, input in context.data.inputs.items():
        if not host.batch.present[name][0]:
            continue
        values, mask = host.batch.values[name][0], host.batch.mask.get(name)
        drawn = draw_feature(input.feature, values, None if mask is None else mask[0])
        if drawn is not None:
            pictures.append((drawn, name))
        elif input.feature.is_text:
            words.append((name, [(input.to_raw({"ids": values}), 0.0)]))
    return Card(f"{host.ids[0]}: {title}", pictures, words, lines)


def _same(statistics: Mapping[str, Statistic], name: str, other: str) -> bool:
    """Whether two metrics are formulas of the same sums, up to rounding."""
    a, b = statistics[name].columns, statistics[other].columns
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-6))


def verdict(compared: Mapping[str, Compared], first: str, second: str) -> str:
    """Which is better in which key metrics, as a sentence for whoever reads nothing else."""
    better: dict[str, list[str]] = {first: [], second: []}
    alike = []
    for name, each in compared.items():
        if name.rpartition("/")[2] not in KEY_METRICS or name.count("/") > 1:
            continue
        if each.adjusted_p_value >= SIGNIFICANT:
            alike.append(name)
        else:
            better[first if (each.value > 0) != name.endswith(LESS_IS_BETTER) else second].append(name)
    parts = [f"{who} is better in {', '.join(names)}" for who, names in better.items() if names]
    parts += [f"there is no significant difference in {', '.join(alike)}"] if alike else []
    return "; ".join(parts) + "."


def key_lines(compared: Mapping[str, Compared]) -> list[str]:
    """A line for each main metric: its value in both runs, and their difference with its interval."""
    return [
        f"{name}: {each.first:.4g} and {each.second:.4g}, "
        f"first less second {each.value:+.4g} [{each.low:+.4g}, {each.high:+.4g}]"
        for name, each in compared.items()
        if name.rpartition("/")[2] in KEY_METRICS and name.count("/") <= 1
    ]


def comparison_table(compared: Mapping[str, Compared], first: str, second: str) -> Table:
    """All differences, the most significant first."""
    rows = [
        [
            name,
            f"{each.first:.4g}",
            f"{each.second:.4g}",
            f"{each.value:+.4g} ({each.low:+.4g} to {each.high:+.4g})",
            f"{each.adjusted_p_value:.3g}",
        ]
        for name, each in sorted(compared.items(), key=lambda item: item[1].adjusted_p_value)
    ]
    return Table(["metric", first, second, "difference (95%)", "p, adjusted"], rows)
