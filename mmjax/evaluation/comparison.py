"""Two models on the same examples: by how much their figures differ, how surely, and where they disagree."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data, Loader
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.suite_result import SuiteResult
from mmjax.evaluation.suites.standard import KEY_FIGURES
from mmjax.metrics.statistics import LESS_IS_BETTER, Difference, Statistic, compare, holm
from mmjax.reports.page import Card, Section, Table
from mmjax.reports.plots import picture_uri, spectrum_uri
from mmjax.types import Image, Label, Spectrogram

SHOWN = 6
# Below this an adjusted p-value tells figures apart.
SURE = 0.05


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model's outcome and its figures; `name` is what a page calls it."""

    name: str
    outcome: EvalResult
    findings: SuiteResult


@dataclasses.dataclass(frozen=True)
class Compared(Difference):
    """A difference of two figures, and its p-value adjusted for all that were compared (Holm 1979)."""

    first: float
    second: float
    adjusted_p_value: float


def compare_figures(first: Contender, second: Contender) -> dict[str, Compared]:
    """first - second of all figures that both have of the same examples; see `mmjax.metrics.statistics.compare`.

    Of figures that are the same number by two names, as the loss of all outputs and of the only one are, one is there.
    """
    ours, theirs = first.findings.statistics, second.findings.statistics
    names: list[str] = []
    # Those of an output before those of all, and shorter names first.
    for name in sorted(ours, key=lambda each: (each == "loss", len(each), each)):
        comparable = name in theirs and ours[name].columns.shape == theirs[name].columns.shape and ours[name].examples
        if comparable and not any(_same(ours, name, other) and _same(theirs, name, other) for other in names):
            names.append(name)
    found = [compare(ours[name], theirs[name]) for name in names]
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


def disagreements(first: Contender, second: Contender, data: Data, data_dir: str, split: str) -> list[Section]:
    """Where one is right and the other is not, by output that says classes, with some of these examples."""
    sections = []
    for name, said in first.outcome.predictions.items():
        target = second.outcome.predictions.get(name, {})
        if "probabilities" not in said or "probabilities" not in target:
            continue
        ours, theirs = (_right(contender.outcome, name) for contender in (first, second))
        asked = first.outcome.truth[name][1].any(1)
        only = {first.name: asked & ours & ~theirs, second.name: asked & theirs & ~ours}
        rows = [["both are right", f"{int((asked & ours & theirs).sum()):,}"]]
        rows += [[f"only {who} is right", f"{int(which.sum()):,}"] for who, which in only.items()]
        rows += [["neither is right", f"{int((asked & ~ours & ~theirs).sum()):,}"]]
        cards = [
            _card(data, data_dir, split, index, f"only {who} is right", _answers((first, second), name, index, data))
            for who, which in only.items()
            for index in np.flatnonzero(which)[:SHOWN]
        ]
        sections.append(Section(name, "", [Table(["", "examples"], rows)], (), cards))
    return sections


def _right(outcome: EvalResult, name: str) -> Bool[np.ndarray, "E"]:
    """Whether all that was asked about an example is answered rightly."""
    truth, real = outcome.truth[name]
    return ((outcome.predictions[name]["probabilities"].argmax(-1) == truth) | ~real).all(1)


def _answers(contenders: Sequence[Contender], name: str, index: np.integer, data: Data) -> list[str]:
    outcome = contenders[0].outcome
    truth, real = outcome.truth[name]
    feature = data.features[outcome.targets[name]]
    assert isinstance(feature, Label)

    def said(classes: np.ndarray) -> str:
        return ", ".join(feature.names[kind] for kind in classes[real[index]])

    lines = [f"true: {said(truth[index])}"]
    for contender in contenders:
        probabilities = contender.outcome.predictions[name]["probabilities"][index]
        lines.append(f"{contender.name}: {said(probabilities.argmax(-1))}")
    return lines


def _card(data: Data, data_dir: str, split: str, index: np.integer, title: str, lines: Sequence[str]) -> Card:
    """What a page shows of an example."""
    loader = Loader(data, data_dir, split, 1)
    host = loader.batch(int(index))
    pictures, words = [], []
    for name, input in data.inputs.items():
        if not host.batch.present[name][0]:
            continue
        values = host.batch.values[name][0]
        match input.feature:
            case Image():
                pictures.append((picture_uri(values), name))
            case Spectrogram():
                pictures.append((spectrum_uri(values[host.batch.mask[name][0]]), name))
        if isinstance(input, TextInput):
            words.append((name, [(input.decode(values), 0.0)]))
    return Card(f"{host.ids[0]}: {title}", pictures, words, lines)


def _same(statistics: Mapping[str, Statistic], name: str, other: str) -> bool:
    """Whether two figures are formulas of the same sums, up to rounding."""
    a, b = statistics[name].columns, statistics[other].columns
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-6))


def verdict(compared: Mapping[str, Compared], first: str, second: str) -> str:
    """Which is better in which of the figures that sum outputs up, as a sentence for whoever reads nothing else."""
    better: dict[str, list[str]] = {first: [], second: []}
    alike = []
    for name, each in compared.items():
        if name.rpartition("/")[2] not in KEY_FIGURES or name.count("/") > 1:
            continue
        if each.adjusted_p_value >= SURE:
            alike.append(name)
        else:
            better[first if (each.value > 0) != name.endswith(LESS_IS_BETTER) else second].append(name)
    parts = [f"{who} is better in {', '.join(names)}" for who, names in better.items() if names]
    parts += [f"they cannot be told apart in {', '.join(alike)}"] if alike else []
    return "; ".join(parts) + "."


def comparison_table(compared: Mapping[str, Compared], first: str, second: str) -> Table:
    """All differences, the surest first."""
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
    return Table(["figure", first, second, "difference (95%)", "p, adjusted"], rows)
