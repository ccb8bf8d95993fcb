"""Intervals hold what they promise, p-values are SciPy's where SciPy has them, fronts are those of a loop."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from mmjax.metrics import statistics
from mmjax.metrics.statistics import bootstrap_interval, detectable_difference, holm, paired_difference, pareto_front


@pytest.fixture
def fewer(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def correct(rng: np.random.Generator, seeds: int, difficulty: np.ndarray, spread: float, skill: float) -> np.ndarray:
    """Which examples each seed has right: seeds differ in skill by `spread`, examples in difficulty."""
    skills = skill + spread * rng.normal(size=(seeds, 1))
    return (skills - difficulty + rng.logistic(size=(seeds, len(difficulty))) > 0).astype(np.float64)


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_intervals_hold_the_mean_of_all_seeds_and_examples(seeds, spread, fewer):
    rng = np.random.default_rng(seeds)
    truth = correct(rng, 2000, rng.normal(size=2000), spread, 0.8).mean()
    held = 0
    for _ in range(150):
        interval = bootstrap_interval(correct(rng, seeds, rng.normal(size=200), spread, 0.8))
        held += interval.low <= truth <= interval.high
    if seeds == 1 and spread:
        assert held < 120  # what a single seed cannot know
    else:
        assert 150 * 0.89 <= held <= 150 * 0.995


def test_an_interval_of_one_figure_a_seed_is_about_that_of_student():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12,))
    low, high = scipy.stats.t.interval(0.95, 11, values.mean(), scipy.stats.sem(values))
    interval = bootstrap_interval(values)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.1)
    held = 0
    for _ in range(200):
        interval = bootstrap_interval(rng.normal(size=3))
        held += interval.low <= 0 <= interval.high
    assert 180 <= held <= 198  # percentiles as they stand hold 150


def test_the_error_is_that_of_many_repetitions():
    rng = np.random.default_rng(2)

    def sample() -> np.ndarray:
        return 2 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + 5 * rng.normal(size=(4, 30))

    samples = [sample() for _ in range(1000)]
    estimated = np.mean([statistics._error([sample])[0] ** 2 for sample in samples])
    assert estimated == pytest.approx(np.var([sample.mean() for sample in samples]), rel=0.1)
    assert estimated == pytest.approx(4 / 4 + 1 / 30 + 25 / 120, rel=0.1)


def test_intervals_are_the_same_every_time_and_stay_within_the_values():
    values = np.ones((3, 400), np.float32)
    values[0, 0] = 0
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    assert interval.low < interval.value < interval.high <= 1
    assert bootstrap_interval(np.ones((3, 5))) == statistics.Interval(1.0, 1.0, 1.0)
    alone = bootstrap_interval(np.ones(1))
    assert alone.value == 1
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


def test_chunks_do_not_show(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 50))
    whole = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 70)
    assert bootstrap_interval(values) == whole


def test_one_figure_a_seed_is_compared_by_the_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=4) + 1, rng.normal(size=4)
    found = paired_difference(a, b)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    more = rng.normal(size=7)
    assert paired_difference(a, more).p_value == pytest.approx(scipy.stats.ttest_ind(a, more, equal_var=False).pvalue)
    # With a single seed each, examples are what is paired.
    found = paired_difference(a[None], b[None])
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)


@pytest.mark.parametrize("others", [3, 5])
def test_p_values_of_no_difference_are_uniform(others, fewer):
    rng = np.random.default_rng(others)
    found = []
    for _ in range(200):
        difficulty = rng.normal(size=150)
        found.append(
            paired_difference(correct(rng, 3, difficulty, 0.5, 0.8), correct(rng, others, difficulty, 0.5, 0.8))
        )
    p_values = np.array([difference.p_value for difference in found])
    assert 0.01 <= (p_values < 0.05).mean() <= 0.09
    assert 0.4 <= (p_values < 0.5).mean() <= 0.6
    outside = np.array([not difference.low <= 0 <= difference.high for difference in found])
    assert (outside == (p_values < 0.05)).mean() > 0.97


@pytest.mark.parametrize("others", [3, 5])
def test_a_difference_is_found_and_how_large_it_is(others):
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=2000)
    a, b = correct(rng, 3, difficulty, 0.05, 1.3), correct(rng, others, difficulty, 0.05, 0.8)
    found = paired_difference(a, b)
    assert found.p_value < 0.01
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(a.mean() - b.mean())
    back = paired_difference(b, a)
    assert (back.value, back.p_value) == pytest.approx((-found.value, found.p_value))
    # Examples in common: the interval is narrower than if each choice had its own.
    single = [bootstrap_interval(values) for values in (a, b)]
    assert found.high - found.low < math.hypot(*(interval.high - interval.low for interval in single))


def test_answers_about_one_example_are_resampled_together(fewer):
    """Three equal slots an example: as if each counted once; answer by answer, intervals are far too narrow."""
    rng = np.random.default_rng(3)
    examples = np.repeat(np.arange(100), 3)
    held = found = naive = 0
    for _ in range(200):
        a, b = (np.repeat(correct(rng, 3, rng.normal(size=100), 0.1, 0.8), 3, axis=1) for _ in range(2))
        once = bootstrap_interval(a[:, ::3])
        assert dataclasses.astuple(bootstrap_interval(a, examples)) == pytest.approx(dataclasses.astuple(once))
        whole, parts = bootstrap_interval(a[:1], examples), bootstrap_interval(a[:1])
        naive += parts.high - parts.low < 0.7 * (whole.high - whole.low)
        difference = paired_difference(a, b, examples)
        held += difference.low <= 0 <= difference.high
        found += difference.p_value < 0.05
    assert held >= 200 * 0.91
    assert found <= 200 * 0.09
    assert naive > 190


def test_intervals_over_clusters_hold_the_mean(fewer):
    """Examples that share recordings, of which some are in many: the mean of all examples is held as promised."""
    rng = np.random.default_rng(4)
    held = naive = 0
    for _ in range(200):
        sizes = rng.integers(1, 20, 80)
        clusters = np.repeat(rng.permutation(80), sizes)
        hardness = np.repeat(1.5 * rng.normal(size=80), sizes)
        values = (hardness + rng.logistic(size=(3, len(clusters))) > 0).astype(np.float64)  # right in half of all cases
        interval, alone = bootstrap_interval(values, clusters), bootstrap_interval(values)
        assert interval.value == pytest.approx(values.mean())
        held += interval.low <= 0.5 <= interval.high
        naive += alone.low <= 0.5 <= alone.high
    assert 200 * 0.9 <= held <= 200 * 0.99
    assert naive < 200 * 0.75


def test_what_never_differs_and_what_always_does():
    assert paired_difference(np.ones((2, 9)), np.ones((2, 9))) == statistics.Difference(0.0, 0.0, 0.0, 1.0)
    assert paired_difference(np.ones((2, 9)), np.zeros((2, 9))) == statistics.Difference(1.0, 1.0, 1.0, 0.0)


def test_holm_of_a_hand_computed_case():
    # In order 0.01 * 4, 0.02 * 3, max(0.03 * 2, 0.06), max(0.04, 0.06).
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9, 0.6])) == pytest.approx([1, 1, 1])
    assert holm(np.array([0.2])) == pytest.approx([0.2])
    assert len(holm(np.zeros(0))) == 0


def test_the_front_is_that_of_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost, value = rng.integers(0, 8, (2, 30)).astype(np.float64)
        slow = [
            not any(
                cost[j] <= cost[i] and value[j] >= value[i] and (cost[j], value[j]) != (cost[i], value[i])
                for j in range(30)
            )
            for i in range(30)
        ]
        assert list(pareto_front(cost, value)) == slow
    assert list(pareto_front(np.array([1.0, 1.0, 2.0]), np.array([0.5, 0.5, np.nan]))) == [True, True, False]


def test_the_detectable_difference_is_half_a_paired_interval():
    differences = np.random.default_rng(5).normal(0.1, 0.02, (1, 4))
    interval = scipy.stats.ttest_1samp(differences[0], 0).confidence_interval(0.95)
    least = detectable_difference(differences)
    assert least == pytest.approx((interval.high - interval.low) / 2)
    # A mean of exactly this size has a p-value of 5%.
    moved = differences[0] - differences[0].mean() + least
    assert scipy.stats.ttest_1samp(moved, 0).pvalue == pytest.approx(0.05)
    # Of several comparisons the variances are averaged.
    two = np.concatenate([differences, 3 * differences])
    assert detectable_difference(two) == pytest.approx(least * np.sqrt((1 + 9) / 2))
    assert np.isnan(detectable_difference(differences[:, :1]))
    assert np.isnan(detectable_difference(differences[:0]))
