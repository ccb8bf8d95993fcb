"""Figures of a split as formulas of sums over its examples: with intervals, of slices, and compared between models."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mmjax.evaluation.statistics import CHUNK_ELEMENTS, RESAMPLES, Difference, Interval

Sums = Float[np.ndarray, "R C"]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A figure that is a formula of sums over E examples.

    `columns` are what every example adds to C sums, and `formula` maps sums [R C] to figures [R]. An example adds
    zeros where the figure is not about it. Examples with the same number in `clusters` depend on each other, and are
    resampled together; None: all are independent.
    """

    columns: Float[np.ndarray, "E C"]
    formula: Callable[[Sums], Float[np.ndarray, "R"]]
    clusters: Int[np.ndarray, "E"] | None = None

    @classmethod
    def ratio(cls, totals: Shaped[np.ndarray, "E"], weights: Shaped[np.ndarray, "E"]) -> "Statistic":
        """The sum of `totals` over that of `weights`: an average of numbers of which an example has some."""
        return cls(np.stack([totals, weights], 1).astype(np.float64), _ratio)

    @property
    def value(self) -> float:
        """The figure; NaN where it is of nothing."""
        return float(self.formula(self.columns.sum(0, keepdims=True))[0])

    @property
    def examples(self) -> int:
        """The number of examples that it is about."""
        return int(self.columns.any(1).sum())

    @functools.cached_property
    def units(self) -> Float[np.ndarray, "U C"]:
        """What is resampled: the columns, summed over each cluster."""
        if self.clusters is None:
            return self.columns
        names, place = np.unique(self.clusters, return_inverse=True)
        sums = np.zeros((len(names), self.columns.shape[1]))
        np.add.at(sums, place, self.columns)
        return sums

    def among(self, chosen: Bool[np.ndarray, "E"]) -> "Statistic":
        """The figure of some of the examples."""
        return dataclasses.replace(self, columns=self.columns * chosen[:, None])

    def spread(self, there: Bool[np.ndarray, "_"]) -> "Statistic":
        """The same figure, of those of more examples that are `there`."""
        columns = np.zeros((len(there), self.columns.shape[1]))
        columns[there] = self.columns
        return Statistic(columns, self.formula)


def intervals(statistics: Mapping[str, Statistic]) -> dict[str, Interval]:
    """Figures of the same examples with their 95% percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13).

    Examples, or clusters of them, are resampled, always by the same random numbers. Resamplings in which a figure is of
    nothing are left out, and an interval of none is NaN.
    """
    if not statistics:
        return {}
    tables = [statistic.units for statistic in statistics.values()]
    resampled = np.concatenate([times @ np.concatenate(tables, 1) for times in _drawn(len(tables[0]))])
    found, place = {}, 0
    for name, statistic in statistics.items():
        width = statistic.units.shape[1]
        figures = statistic.formula(resampled[:, place : place + width])
        place += width
        figures = figures[np.isfinite(figures)]
        low, high = np.percentile(figures, (2.5, 97.5)) if len(figures) else (np.nan, np.nan)
        found[name] = Interval(statistic.value, float(low), float(high))
    return found


def compare(first: Statistic, second: Statistic) -> Difference:
    """first - second of the same examples: its 95% bootstrap interval, examples resampled for both together, and the
    two-sided p-value of the paired randomisation test (Noreen 1989): how often as large a difference comes about where
    a coin decides, example by example, which of the two is which. Clusters of examples are resampled and exchanged as
    wholes.

    Raises:
        ValueError: where the two are not figures of the same kind of as many examples.
    """
    ours, theirs = first.units, second.units
    if ours.shape != theirs.shape:
        raise ValueError(f"sums {ours.shape} and {theirs.shape} cannot be compared")
    formula, value = first.formula, first.value - second.value
    changes = []
    for times in _drawn(len(ours)):
        changes.append(formula(times @ ours) - formula(times @ theirs))
    resampled = np.concatenate(changes)
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, (2.5, 97.5)) if len(resampled) else (np.nan, np.nan)

    apart = theirs - ours
    swapped = np.concatenate([coins @ apart for coins in _coins(len(apart))])
    by_chance = formula(ours.sum(0) + swapped) - formula(theirs.sum(0) - swapped)
    # Rounding must not tell apart differences that are equal.
    as_large = np.abs(by_chance) >= abs(value) - 1e-12
    return Difference(value, float(low), float(high), float((1 + as_large.sum()) / (1 + len(by_chance))))


def _ratio(sums: Sums) -> Float[np.ndarray, "R"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0] / sums[:, 1]


def _drawn(examples: int) -> Iterator[Float[np.ndarray, "r E"]]:
    """How often each example is drawn in each of RESAMPLES resamplings, a few of these at a time."""
    rng = np.random.default_rng(0)
    for size in _chunks(examples):
        drawn = rng.integers(examples, size=(size, examples)) + examples * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples).astype(np.float64)


def _coins(examples: int) -> Iterator[Float[np.ndarray, "r E"]]:
    rng = np.random.default_rng(1)
    for size in _chunks(examples):
        yield rng.integers(2, size=(size, examples)).astype(np.float64)


def _chunks(examples: int) -> Iterator[int]:
    chunk = max(1, CHUNK_ELEMENTS // max(1, examples))
    for begin in range(0, RESAMPLES, chunk):
        yield min(chunk, RESAMPLES - begin)
