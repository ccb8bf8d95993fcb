"""Figures that are formulas of sums: intervals and comparisons against SciPy's, and against what is known."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mmjax.metrics.statistics import RESAMPLES, Statistic, compare_paired, intervals

RNG = np.random.default_rng(0)


def test_intervals_are_those_of_scipy():
    weights = RNG.integers(1, 5, 400).astype(float)
    totals = weights * RNG.beta(2, 5, 400)
    found = intervals({"ratio": Statistic.ratio(totals, weights), "mean": Statistic.ratio(totals, np.ones(400))})
    assert found["ratio"].value == pytest.approx(totals.sum() / weights.sum(), rel=1e-12)
    assert found["mean"].value == pytest.approx(totals.mean(), rel=1e-12)

    def ratio(totals, weights, axis):
        return totals.sum(axis) / weights.sum(axis)

    for name, data, statistic, paired in (
        ("ratio", (totals, weights), ratio, True),
        ("mean", (totals,), np.mean, False),
    ):
        theirs = stats.bootstrap(
            data, statistic, paired=paired, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
        )
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert found[name].low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
        assert found[name].high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_intervals_hold_what_is_true_as_often_as_they_say():
    held = 0
    for trial in range(300):
        values = np.random.default_rng(trial).exponential(size=120)
        interval = intervals({"mean": Statistic.ratio(values, np.ones(120))})["mean"]
        held += interval.low <= 1 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def test_a_slice_is_the_figure_of_its_examples():
    values, chosen = RNG.normal(size=50), RNG.random(50) < 0.3
    whole = Statistic.ratio(values, np.ones(50))
    some = whole.subset(chosen)
    assert some.value == pytest.approx(values[chosen].mean(), rel=1e-12)
    assert (whole.examples, some.examples) == (50, chosen.sum())
    interval = intervals({"some": some})["some"]
    assert interval.low < some.value < interval.high
    none = whole.subset(np.zeros(50, bool))
    assert np.isnan(none.value)
    assert none.examples == 0
    assert np.isnan(intervals({"none": none})["none"].low)


def test_comparing_is_the_paired_test_of_scipy():
    a = RNG.normal(0.30, 1, 200)
    b = 0.8 * a + RNG.normal(0, 0.6, 200)
    b += (a - b).mean() - 0.06
    ones = np.ones(200)
    found = compare_paired(Statistic.ratio(a, ones), Statistic.ratio(b, ones))
    assert found.value == pytest.approx((a - b).mean(), rel=1e-9)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    )
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.03)
    assert 0.1 < theirs.pvalue < 0.9  # where one side and both are told apart
    resampled = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(4)
    )
    width = resampled.confidence_interval.high - resampled.confidence_interval.low
    assert found.low == pytest.approx(resampled.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(resampled.confidence_interval.high, abs=0.06 * width)


def test_clusters_are_resampled_as_wholes():
    """Like SciPy's bootstrap and permutation test of the clusters' sums."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(rng.permutation(60), rng.integers(1, 9, 60))
    shared = rng.normal(size=60)[clusters]
    a, b = (shared + 0.3 * rng.normal(size=len(clusters)) for _ in range(2))
    b = b + 0.3 * rng.normal(size=60)[clusters]
    ones = np.ones(len(clusters))
    first, second = (dataclasses.replace(Statistic.ratio(values, ones), clusters=clusters) for values in (a, b))
    assert first.value == pytest.approx(a.mean(), rel=1e-12)
    assert first.examples == len(clusters)
    sums = [np.bincount(clusters, values) for values in (a, b, ones)]

    def mean(totals, counts, axis):
        return totals.sum(axis) / counts.sum(axis)

    rng = np.random.default_rng(1)
    theirs = stats.bootstrap((sums[0], sums[2]), mean, paired=True, method="percentile", n_resamples=20_000, rng=rng)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    found = intervals({"mean": first})["mean"]
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)
    naive = intervals({"mean": dataclasses.replace(first, clusters=None)})["mean"]
    assert naive.high - naive.low < 0.7 * width

    test = stats.permutation_test(
        (sums[0], sums[1]),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=rng,
    )
    assert compare_paired(first, second).p_value == pytest.approx(test.pvalue, abs=0.02)
    some = clusters < 20
    assert first.subset(some).resampling_units.any(1).sum() == 20


def test_intervals_over_clusters_hold_what_is_true_as_often_as_they_say():
    held = naive = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        clusters = np.repeat(np.arange(60), 5)
        values = rng.normal(size=60)[clusters] + rng.normal(size=300)
        alone = Statistic.ratio(values, np.ones(300))
        for statistic in (alone, dataclasses.replace(alone, clusters=clusters)):
            interval = intervals({"mean": statistic})["mean"]
            inside = interval.low <= 0 <= interval.high
            held, naive = (held + inside, naive) if statistic is not alone else (held, naive + inside)
    assert 0.90 <= held / 200 <= 0.98
    assert naive / 200 < 0.8


def test_comparing_what_is_alike():
    right = (np.random.default_rng(5).random(100) < 0.7).astype(float)
    same = Statistic.ratio(right, np.ones(100))
    found = compare_paired(same, same)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    other = Statistic.ratio(1 - right, np.ones(100))
    assert compare_paired(same, other).p_value < 0.01
    always, never = (Statistic.ratio(np.full(100, value), np.ones(100)) for value in (1.0, 0.0))
    assert compare_paired(always, never).p_value == 1 / (1 + RESAMPLES)  # never 0
    assert compare_paired(same, other).value == -compare_paired(other, same).value
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_paired(same, Statistic.ratio(right[:50], np.ones(50)))
