"""Metrics as functions of sums over examples, bootstrap intervals, and significance tests."""

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
    """A mean and its 95% confidence interval, in the unit of the values."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """A difference of two means, its 95% interval, and the two-sided p-value of no difference."""

    p_value: float


def bootstrap_interval(values: Float[np.ndarray, "S *E"], clusters: Int[np.ndarray, "E"] | None = None) -> Interval:
    """The mean with its 95% bootstrap interval over both new seeds and new examples.

    `values` are a metric of S seeds on the same E examples, or one value per seed. Examples with the same number in
    `clusters` depend on each other and are resampled together: below, a cluster counts as one example (see `_table`).
    Seeds and examples are resampled independently (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap"),
    always with the same random numbers. Alone, that bootstrap counts the interaction of seeds and examples three times,
    and its intervals for few seeds are too narrow: with 3 they contain the mean in 3 of 4 cases. So the percentiles'
    distances from the mean are scaled to the unbiased standard error and to the tails of Student's t:

        mean + (percentile - mean) * (t(97.5%, df) * error) / (1.96 * deviation of the resampled means)

    where error^2 = rows / S + columns / E - residual / (S E) from the variances of the means of seeds and of examples
    and the residual mean square, and df are Satterthwaite's degrees of freedom (1946). The bootstrap gives the shape.

    With a single seed the interval is over examples only; a single value has no interval (NaN). Means of per-example
    values stay within their extremes.
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

    Examples and clusters are the same for both and resampled together. Seeds are paired where there are equally many of
    each, otherwise independent. The p-value is that of the difference divided by its standard error, which covers seeds
    and examples, under Student's t with Satterthwaite's degrees of freedom. (A permutation test of examples would take
    the seeds as fixed, one of seeds has only 2^S outcomes.) For one value per seed this is the paired t test, or
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


def detectable_difference(differences: Float[np.ndarray, "C S"]) -> float:
    """The smallest mean difference over paired seeds that a t test calls significant; NaN below two seeds.

        t(97.5%, S - 1) * deviation / sqrt(S),    deviation^2 = mean over C comparisons of the variance over seeds

    It is half the width of the 95% interval of the paired t test, with the variance pooled over comparisons: the mean
    of a comparison that is closer to 0 cannot be distinguished from it.
    """
    from scipy.special import stdtrit

    comparisons, seeds = differences.shape
    if not comparisons or seeds < 2:
        return math.nan
    return float(stdtrit(seeds - 1, 0.975) * math.sqrt(differences.var(1, ddof=1).mean() / seeds))


def holm(p_values: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Holm-adjusted p-values of N comparisons: max over j <= i of min(1, (N - j + 1) p_(j)).

    They are in the order given. Rejecting those below 5% keeps the probability of any false rejection below 5%,
    whatever the dependence (Holm 1979).
    """
    order = np.argsort(p_values)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(p_values), 0, -1) * p_values[order]))
    return adjusted


def pareto_front(cost: Float[np.ndarray, "N"], value: Float[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """The points that no other dominates in cost (lower is better) and value (higher is better).

    NaN is never on the front.
    """
    no_worse = (cost <= cost[:, None]) & (value >= value[:, None])
    better = (cost < cost[:, None]) | (value > value[:, None])
    return ~(no_worse & better).any(1) & ~np.isnan(cost) & ~np.isnan(value)


def _table(values: Float[np.ndarray, "S *E"], clusters: Int[np.ndarray, "E"] | None) -> Float[np.ndarray, "S U"]:
    """The values by independent unit: one column per cluster, whose mean is that of all values.

    A column is mean + (sum - count * mean) / (mean count); the variance is that of the linearised ratio (Cochran 1977,
    section 6.3). For clusters of equal size it is their mean.
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
    """The sum of the tables' means, with shared examples and separate seeds."""
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
    # The noise is in the means of both seeds and examples; the rest is at least as large as either.
    variance = max(sum(part for part, _ in parts) - noise, *(part for part, _ in parts), 0)
    freedom = variance**2 / sum(part**2 / free for part, free in parts) if variance > 0 else math.inf
    return math.sqrt(variance), float(freedom)


def _resampled_means(tables: Sequence[Float[np.ndarray, "_ E"]]) -> Float[np.ndarray, "R"]:
    """The sum of the tables' means, with seeds resampled in each and examples in all together."""
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
    """A metric that is a function of sums over E examples.

    `columns` are each example's contributions to C sums, and `formula` maps sums [R C] to values [R]. An example to
    which the metric does not apply contributes zeros. Examples with the same number in `clusters` depend on each other
    and are resampled together; None: all are independent.
    """

    columns: Float[np.ndarray, "E C"]
    formula: Callable[[Sums], Float[np.ndarray, "R"]]
    clusters: Int[np.ndarray, "E"] | None = None

    @classmethod
    def ratio(cls, totals: Shaped[np.ndarray, "E"], weights: Shaped[np.ndarray, "E"]) -> "Statistic":
        """sum(totals) / sum(weights): a weighted average over the examples."""
        return cls(np.stack([totals, weights], 1).astype(np.float64), _ratio)

    @property
    def value(self) -> float:
        """The metric; NaN where it applies to no example."""
        return float(self.formula(self.columns.sum(0, keepdims=True))[0])

    @property
    def examples(self) -> int:
        """The number of examples that contribute."""
        return int(self.columns.any(1).sum())

    @functools.cached_property
    def resampling_units(self) -> Float[np.ndarray, "U C"]:
        """The resampling units: the columns, summed over each cluster."""
        if self.clusters is None:
            return self.columns
        names, place = np.unique(self.clusters, return_inverse=True)
        sums = np.zeros((len(names), self.columns.shape[1]))
        np.add.at(sums, place, self.columns)
        return sums

    def subset(self, chosen: Bool[np.ndarray, "E"]) -> "Statistic":
        """The metric on a subset of the examples."""
        return dataclasses.replace(self, columns=self.columns * chosen[:, None])

    def expand(self, present: Bool[np.ndarray, "_"]) -> "Statistic":
        """The same metric on a larger set of examples, of which it covers those that are `present`."""
        columns = np.zeros((len(present), self.columns.shape[1]))
        columns[present] = self.columns
        return Statistic(columns, self.formula)


def intervals(statistics: Mapping[str, Statistic]) -> dict[str, Interval]:
    """95% percentile bootstrap intervals of metrics (Efron & Tibshirani 1993, chapter 13).

    All metrics are on the same examples. Examples, or clusters of them, are resampled, always with the same random
    numbers. Resamples to which a metric does not apply are left out; without any the interval is NaN.
    """
    if not statistics:
        return {}
    tables = [statistic.resampling_units for statistic in statistics.values()]
    resampled = np.concatenate([times @ np.concatenate(tables, 1) for times in _resample_counts(len(tables[0]))])
    found, place = {}, 0
    for name, statistic in statistics.items():
        width = statistic.resampling_units.shape[1]
        figures = statistic.formula(resampled[:, place : place + width])
        place += width
        figures = figures[np.isfinite(figures)]
        low, high = np.percentile(figures, (2.5, 97.5)) if len(figures) else (np.nan, np.nan)
        found[name] = Interval(statistic.value, float(low), float(high))
    return found


def compare_paired(first: Statistic, second: Statistic) -> Difference:
    """first - second on the same examples, with its 95% bootstrap interval and a p-value.

    Examples are resampled for both together. The two-sided p-value is that of the paired randomisation test (Noreen
    1989): how often a difference is as large if the two are swapped at random, example by example. Clusters of examples
    are resampled and swapped as a whole.

    Raises:
        ValueError: the two are not of the same kind or not on equally many examples.
    """
    ours, theirs = first.resampling_units, second.resampling_units
    if ours.shape != theirs.shape:
        raise ValueError(f"sums {ours.shape} and {theirs.shape} cannot be compared")
    formula, value = first.formula, first.value - second.value
    changes = []
    for times in _resample_counts(len(ours)):
        changes.append(formula(times @ ours) - formula(times @ theirs))
    resampled = np.concatenate(changes)
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.percentile(resampled, (2.5, 97.5)) if len(resampled) else (np.nan, np.nan)

    apart = theirs - ours
    swapped = np.concatenate([coins @ apart for coins in _random_signs(len(apart))])
    by_chance = formula(ours.sum(0) + swapped) - formula(theirs.sum(0) - swapped)
    # Rounding must not separate equal differences.
    as_large = np.abs(by_chance) >= abs(value) - 1e-12
    return Difference(value, float(low), float(high), float((1 + as_large.sum()) / (1 + len(by_chance))))


def _ratio(sums: Sums) -> Float[np.ndarray, "R"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0] / sums[:, 1]


def _resample_counts(examples: int) -> Iterator[Float[np.ndarray, "r E"]]:
    """How often each example is drawn in each of RESAMPLES resamples, in chunks."""
    rng = np.random.default_rng(0)
    for size in _chunks(examples):
        drawn = rng.integers(examples, size=(size, examples)) + examples * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * examples).reshape(size, examples).astype(np.float64)


def _random_signs(examples: int) -> Iterator[Float[np.ndarray, "r E"]]:
    rng = np.random.default_rng(1)
    for size in _chunks(examples):
        yield rng.integers(2, size=(size, examples)).astype(np.float64)


def _chunks(examples: int) -> Iterator[int]:
    chunk = max(1, CHUNK_ELEMENTS // max(1, examples))
    for begin in range(0, RESAMPLES, chunk):
        yield min(chunk, RESAMPLES - begin)
