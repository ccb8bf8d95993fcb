"""What a few seeds and a finite test set allow to be said: intervals, differences, many comparisons, trade-offs."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

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
