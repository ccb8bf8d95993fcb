"""Whether figures are as good for all kinds of examples: by speaker, digit, skin tone, or whatever else is known."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mmjax.data.loader import Data
from mmjax.data.sources.base import Records
from mmjax.errors import UserError
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.metrics.statistics import Statistic, Sums, intervals
from mmjax.reports.page import Section, Table
from mmjax.types import Label

# A field that has more values than this names examples rather than kinds of them.
MOST_KINDS = 24
DEALS = 500
GAP = "largest gap"


def judge_slices(figures: Mapping[str, Statistic], kinds: Mapping[str, Sequence[str]]) -> SuiteResult:
    """Figures of every kind of examples by itself: "OUTPUT/FIELD=KIND/FIGURE"; "OUTPUT/FIELD/FIGURE_gap", the largest
    less the smallest of these, its interval that of the difference between these two kinds; and FIGURE_gap_p_value, how
    often there is as large a gap where kinds mean nothing.

    `kinds` are the examples' kinds by field, "" where it is not known.
    """
    statistics: dict[str, Statistic] = {}
    plain: dict[str, Metric] = {}
    sections = []
    for field, values in kinds.items():
        array = np.array(values)
        names = sorted(set(values) - {""}, key=lambda name: name.zfill(12) if name.isdigit() else name)
        columns: dict[str, dict[str, str]] = {"examples": {name: f"{(array == name).sum():,}" for name in names}}
        for path, figure in figures.items():
            output, _, short = path.rpartition("/")
            parts = {name: figure.among(array == name) for name in names}
            parts = {name: part for name, part in parts.items() if part.examples}
            if len(parts) < 2:
                continue
            gap = _gap(list(parts.values()))
            p_value = _chance(figure, array, list(parts))
            statistics |= {f"{output}/{field}={name}/{short}": part for name, part in parts.items()}
            statistics[f"{output}/{field}/{short}_gap"] = gap
            plain[f"{output}/{field}/{short}_gap_p_value"] = Metric(p_value, None, None, gap.examples)
            columns[path] = {
                name: f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"
                for name, interval in intervals(parts).items()
            } | {GAP: f"{gap.value:.4f} (p = {p_value:.2g})"}
        rows = [[name, *(column.get(name, "") for column in columns.values())] for name in [*names, GAP]]
        about = (
            "Figures of each kind of examples, with 95% intervals by bootstrap over examples or their clusters. There "
            f"always is a gap: p is how often it is as large where kinds are dealt out at random, of {DEALS} times."
        )
        sections.append(Section(f"By {field}", about, [Table([field, *columns], rows)]))
    return SuiteResult(statistics, plain, sections)


def _gap(parts: Sequence[Statistic]) -> Statistic:
    """The largest figure less the smallest.

    Which kinds these are is not asked anew of every resampling, where the largest gap would always be larger.
    """
    smallest, *_, largest = sorted(parts, key=lambda part: part.value)
    width, formula = largest.columns.shape[1], largest.formula

    def gap(sums: Sums) -> Float[np.ndarray, "R"]:
        return formula(sums[:, :width]) - formula(sums[:, width:])

    columns = np.concatenate([largest.columns, smallest.columns], 1)
    return dataclasses.replace(largest, columns=columns, formula=gap)


def _chance(figure: Statistic, kinds: Shaped[np.ndarray, "E"], names: Sequence[str]) -> float:
    """How often the gap is as large as it is where the kinds are permuted (a permutation test).

    Where all examples of a cluster are of one kind, kinds of clusters are permuted.
    """
    rng = np.random.default_rng(0)
    known = np.isin(kinds, names)
    columns, kinds = figure.columns[known], kinds[known]
    if figure.clusters is not None:
        _, first, place = np.unique(figure.clusters[known], return_index=True, return_inverse=True)
        if (kinds == kinds[first][place]).all():
            figure = dataclasses.replace(figure, columns=columns, clusters=place)
            columns, kinds = figure.units, kinds[first]
    own = kinds[:, None] == np.array(names)

    def gap(own: Bool[np.ndarray, "K N"]) -> float:
        return float(np.ptp(figure.formula(own.T.astype(np.float64) @ columns)))

    # Rounding must not tell apart gaps that are equal.
    least = gap(own) - 1e-12
    return (1 + sum(gap(rng.permutation(own)) >= least for _ in range(DEALS))) / (1 + DEALS)


def find_kinds(records: Records, data: Data, wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """The kinds of all examples of a split by field: those wanted, or all that have 2 to 24 values, each of two
    examples on average at least.

    Labels are called by their classes. Raises UserError for a field that there is not, or that tells no kinds apart.
    """
    names = {
        input.field or name: input.feature.names
        for name, input in data.inputs.items()
        if isinstance(input.feature, Label)
    }
    found: dict[str, list[str]] = {}
    for index in range(len(records)):
        for field, value in records[index].items():
            if wanted is not None and field not in wanted:
                continue
            if isinstance(value, int | np.integer):
                said = names[field][value] if field in names and 0 <= value < len(names[field]) else str(value)
            elif isinstance(value, str):
                said = value
            else:
                continue
            found.setdefault(field, [""] * len(records))[index] = said
    most = min(MOST_KINDS, len(records) // 2)
    kept = {field: values for field, values in found.items() if 2 <= len(set(values) - {""}) <= most}
    for field in wanted or ():
        if field not in kept:
            able = ", ".join(find_kinds(records, data, None)) or "none"
            raise UserError(f"slices={field} is no field that tells kinds of examples apart; those are {able}")
    return kept
