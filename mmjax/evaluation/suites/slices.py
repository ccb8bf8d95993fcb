"""The suite `slices`: metrics of each kind of examples, by speaker, digit or any other field."""

import dataclasses
from collections.abc import Mapping, Sequence

import chz
import numpy as np
from jaxtyping import Bool, Float, Shaped

from mmjax.data.loader import Data
from mmjax.data.sources.base import Records
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.evaluation.suites.base import Suite
from mmjax.evaluation.suites.standard import evaluate_standard, key_metrics
from mmjax.metrics.statistics import Statistic, Sums, intervals
from mmjax.reports.page import Section, Table

# A field that has more values than this identifies examples rather than kinds of them.
MOST_VALUES = 24
PERMUTATIONS = 500
GAP = "largest gap"


@chz.chz
class Slices(Suite):
    """Key metrics of each kind of examples by itself, and the largest gap between kinds."""

    fields: tuple[str, ...] | None = chz.field(
        default=None, doc="fields of the raw examples; None: all with few values"
    )

    def is_key(self, metric: str) -> bool:
        return metric.endswith("_gap")

    def run(self, context: EvalContext, checkpoint: EvalCheckpoint) -> SuiteResult:
        values = find_values(context.records, context.data, self.fields)
        return slice_metrics(key_metrics(evaluate_standard(context, checkpoint)), values)


def slice_metrics(metrics: Mapping[str, Statistic], fields: Mapping[str, Sequence[str]]) -> SuiteResult:
    """Metrics of every slice, "OUTPUT/FIELD=VALUE/METRIC", and their gaps.

    "OUTPUT/FIELD/METRIC_gap" is the largest less the smallest of these, its interval that of the difference between
    these two slices, and METRIC_gap_p_value how often there is as large a gap where values are permuted.

    `fields` are the examples' values by field, "" where one is not known.
    """
    statistics: dict[str, Statistic] = {}
    plain: dict[str, Metric] = {}
    sections = []
    for field, values in fields.items():
        array = np.array(values)
        names = sorted(set(values) - {""}, key=lambda name: name.zfill(12) if name.isdigit() else name)
        counts = {name: f"{(array == name).sum():,}" for name in names}
        tables = []
        for path, whole in metrics.items():
            output, _, short = path.rpartition("/")
            parts = {name: whole.subset(array == name) for name in names}
            parts = {name: part for name, part in parts.items() if part.examples}
            if len(parts) < 2:
                continue
            gap = _gap(list(parts.values()))
            p_value = _permutation_p_value(whole, array, list(parts))
            statistics |= {f"{output}/{field}={name}/{short}": part for name, part in parts.items()}
            statistics[f"{output}/{field}/{short}_gap"] = gap
            plain[f"{output}/{field}/{short}_gap_p_value"] = Metric(p_value, None, None, gap.examples)
            cells = {
                name: f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"
                for name, interval in intervals(parts).items()
            } | {GAP: f"{gap.value:.4f} (p = {p_value:.2g})"}
            rows = [[name, counts.get(name, ""), cells.get(name, "")] for name in [*names, GAP]]
            tables.append(Table([field, "examples", path], rows))
        about = (
            "Metrics of each kind of examples, with 95% intervals by bootstrap over examples or their clusters. There "
            f"always is a gap: p is how often it is as large where values are permuted at random, {PERMUTATIONS} times."
        )
        sections.append(Section(f"By {field}", about, tables))
    return SuiteResult(statistics, plain, sections)


def _gap(parts: Sequence[Statistic]) -> Statistic:
    """The largest value less the smallest.

    Which slices these are is not decided again in every resampling, where the largest gap would always be larger.
    """
    smallest, *_, largest = sorted(parts, key=lambda part: part.value)
    width, formula = largest.columns.shape[1], largest.formula

    def gap(sums: Sums) -> Float[np.ndarray, "R"]:
        return formula(sums[:, :width]) - formula(sums[:, width:])

    columns = np.concatenate([largest.columns, smallest.columns], 1)
    return dataclasses.replace(largest, columns=columns, formula=gap)


def _permutation_p_value(metric: Statistic, kinds: Shaped[np.ndarray, "E"], names: Sequence[str]) -> float:
    """How often the gap is as large as it is where the values are permuted (a permutation test).

    Where all examples of a cluster have one value, values of clusters are permuted.
    """
    rng = np.random.default_rng(0)
    known = np.isin(kinds, names)
    columns, kinds = metric.columns[known], kinds[known]
    if metric.clusters is not None:
        _, first, place = np.unique(metric.clusters[known], return_index=True, return_inverse=True)
        if (kinds == kinds[first][place]).all():
            metric = dataclasses.replace(metric, columns=columns, clusters=place)
            columns, kinds = metric.resampling_units, kinds[first]
    own = kinds[:, None] == np.array(names)

    def gap(own: Bool[np.ndarray, "K N"]) -> float:
        return float(np.ptp(metric.formula(own.T.astype(np.float64) @ columns)))

    # Rounding must not make equal gaps differ.
    least = gap(own) - 1e-12
    return (1 + sum(gap(rng.permutation(own)) >= least for _ in range(PERMUTATIONS))) / (1 + PERMUTATIONS)


def find_values(records: Records, data: Data, wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """The values of all examples of a split by field.

    Fields are those wanted, or all that have 2 to 24 values, each of two examples on average at least. Labels are
    called by their classes. Raises UserError for a field that there is not, or that has other numbers of values.
    """
    names = {input.field or name: input.feature.classes for name, input in data.inputs.items() if input.feature.classes}
    found: dict[str, list[str]] = {}
    for index in range(len(records)):
        for field, value in records[index].items():
            if wanted is not None and field not in wanted:
                continue
            if isinstance(value, int | np.integer):
                shown = names[field][value] if field in names and 0 <= value < len(names[field]) else str(value)
            elif isinstance(value, str):
                shown = value
            else:
                continue
            found.setdefault(field, [""] * len(records))[index] = shown
    most = min(MOST_VALUES, len(records) // 2)
    kept = {field: values for field, values in found.items() if 2 <= len(set(values) - {""}) <= most}
    for field in wanted or ():
        if field not in kept:
            able = ", ".join(find_values(records, data, None)) or "none"
            raise UserError(f"suites.slices.fields={field} is not a field with 2 to {most} values; those are {able}")
    return kept
