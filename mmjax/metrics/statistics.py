"""Metrics as formulas of sums over examples, with bootstrap intervals, paired tests and Holm's correction."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

RESAMPLES = 2000
# Examples drawn at a time: as many as a processor's cache holds.
CHUNK_ELEMENTS = 1 << 17
# How the names of figures end of which less is better; of all others more is.
LESS_IS_BETTER = ("loss", "error", "rank", "deviation")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval, in the unit of the values."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """A difference of two means, its 95% interval, and the two-sided p-value of no difference."""

    p_value: float


def bootstrap_interval(values: Float[np.ndarray, "S *E"], clusters: Int[np.ndarray, "E"] | None = None) -> Interval:
    """The mean with its 95% bootstrap interval over both new seeds and new examples.

    `values` are figures of S seeds on the same E examples, or one figure a seed. Those with the same number in
    `clusters`, such as several answers about one example, depend on each other and are resampled together: below, a
    cluster counts as one example (see `_table`). Seeds and examples are resampled independently of one another (the
    pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap"), always with the same random numbers. By itself that
    bootstrap counts the interaction of seeds and examples three times, and of few seeds it knows too little: 3 of them
    contain their mean in 3 of 4 cases. So the percentiles' distances from the mean are scaled to the unbiased standard
    error and to the tails of Student's t:

        mean + (percentile - mean) * (t(97.5%, df) * error) / (1.96 * deviation of the resampled means)

    where error^2 = rows / S + columns / E - residual / (S E) from the variances of the means of seeds and of examples
    and the residual mean square, and df are Satterthwaite's degrees of freedom (1946). The bootstrap gives the shape.

    With a single seed only the examples speak; a single figure has no interval (NaN). Means of per-example values stay
    within the extremes of these.
    """
    table = _table(values, clusters)
    interval = _interval([table])
    if table.shape[1] == 1:
        return interval
    low, high = np.clip((interval.low, interval.high), values.min(), values.max())
    return Interval(interval.value, float(low), float(high))


def paired_difference(
    a: Float[np.ndarray, "S *E"], b: Float[np.ndarray, "Z *E"], clusters: Int[np.ndarray, "E"] | None = None
) -> Difference:
    """mean(a) - mean(b) with its 95% interval (see `bootstrap_interval`) and a two-sided p-value.

    Examples and clusters are the same for both and resampled together. Seeds are taken as pairs where there are as many
    of each, else as independent. A permutation of examples would take the seeds as given, one of seeds has 2^S
    outcomes; so the p-value is that of the ratio of the difference to its standard error, which has both variances,
    under Student's t with Satterthwaite's degrees of freedom. For one figure a seed this is the paired t test, or
    Welch's for unequal numbers of seeds.
    """
    from scipy.special import stdtr

    first, second = _table(a, clusters), _table(b, clusters)
    tables = [first - second] if len(first) == len(second) else [first, -second]
    interval = _interval(tables)
    error, freedom = _error(tables)
    if error == 0:
        p_value = float(interval.value == 0)
    else:
        p_value = float(2 * stdtr(freedom, -abs(interval.value) / error))
    return Difference(interval.value, interval.low, interval.high, p_value)


def holm(p_values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """p-values adjusted for N comparisons, in the order given: max over j <= i of min(1, (N - j + 1) p_(j)).

    Rejecting those below 5% keeps the chance of any false rejection below 5%, whatever the dependence (Holm 1979).
    """
    order = np.argsort(p_values)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(p_values), 0, -1) * p_values[order]))
    return adjusted


def pareto_front(cost: Float[np.ndarray, "N"], value: Float[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """The points that no other beats: none is as cheap and as good and better in one of the two. NaN is never on it."""
    no_worse = (cost <= cost[:, None]) & (value >= value[:, None])
    better = (cost < cost[:, None]) | (value > value[:, None])
    return ~(no_worse & better).any(1) & ~np.isnan(cost) & ~np.isnan(value)


def _table(values: Float[np.ndarray, "S *E"], clusters: Int[np.ndarray, "E"] | None) -> Float[np.ndarray, "S U"]:
    """The values by independent unit: of every cluster the mean plus what it adds to a seed's mean, times the clusters.

    That is mean + (sum - count * mean) / (mean count), whose mean over clusters is the mean of all values and whose
    variance is that of the linearised ratio (Cochran 1977, section 6.3); of clusters of one size it is their mean.
    """
    table = values.reshape(len(values), -1).astype(np.float64)
    if clusters is None:
        return table
    place = np.unique(clusters, return_inverse=True)[1]
    counts = np.bincount(place)
    sums = np.stack([np.bincount(place, row) for row in table])
    mean = table.mean(1, keepdims=True)
    return mean + (sums - counts * mean) / counts.mean()


def _interval(tables: Sequence[Float[np.ndarray, "_ E"]]) -> Interval:
    """The sum of the tables' means, which have their examples in common and their seeds not."""
    from scipy.special import ndtri, stdtrit

    mean = float(sum(table.mean() for table in tables))
    error, freedom = _error(tables)
    resampled = _resampled_means(tables)
    deviation = resampled.std()
    scale = stdtrit(freedom, 0.975) * error / (ndtri(0.975) * deviation) if deviation else 0 * error
    low, high = mean + scale * (np.percentile(resampled, (2.5, 97.5)) - mean)
    return Interval(mean, float(low), float(high))


def _error(tables: Sequence[Float[np.ndarray, "_ E"]]) -> tuple[float, float]:
    """The standard error of the sum of the tables' means, and its degrees of freedom."""
    examples = tables[0].shape[1]
    parts, noise = [], 0.0
    for table in tables:
        seeds = len(table)
        if seeds > 1:
            parts.append((table.mean(1).var(ddof=1) / seeds, seeds - 1))
        if seeds > 1 and examples > 1:
            residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
            noise += (residual**2).sum() / ((seeds - 1) * (examples - 1) * seeds * examples)
    if examples > 1:
        parts.append((sum(table.mean(0) for table in tables).var(ddof=1) / examples, examples - 1))
    if not parts:
        return math.nan, math.nan
    # The noise is in the means of seeds and in those of examples; what is left is no less than either by itself.
    variance = max(sum(part for part, _ in parts) - noise, *(part for part, _ in parts), 0)
    freedom = variance**2 / sum(part**2 / free for part, free in parts) if variance > 0 else math.inf
    return math.sqrt(variance), float(freedom)


def _resampled_means(tables: Sequence[Float[np.ndarray, "_ E"]]) -> Float[np.ndarray, "R"]:
    """The sum of the tables' means for seeds drawn anew in each and examples drawn anew in all of them."""
    rng = np.random.default_rng(0)
    counts = [rng.multinomial(len(table), np.full(len(table), 1 / len(table)), RESAMPLES) for table in tables]
    shares = np.concatenate([count / len(table) for count, table in zip(counts, tables, strict=True)], axis=1)
    rows = np.concatenate(tables)
    examples = rows.shape[1]
    chunk = max(1, CHUNK_ELEMENTS // examples)
    means = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, chunk):
        some = slice(begin, min(begin + chunk, RESAMPLES))
        size = some.stop - some.start
        drawn = rng.integers(examples, size=(size, examples)) + examples * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples)
        means[some] = ((times @ rows.T) * shares[some]).sum(1) / examples
    return means


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
