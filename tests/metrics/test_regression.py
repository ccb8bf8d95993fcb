"""Figures of predicted quantities against scikit-learn, and against numbers drawn from the prediction."""

import numpy as np
import pytest
from sklearn import metrics

from mmjax.metrics.regression import regression_statistics

RNG = np.random.default_rng(0)
E, S, Q = 301, 3, 2
TRUTH = RNG.normal(size=(E, S, Q))
DEVIATION = RNG.uniform(0.2, 1.5, (E, S, Q))
MEAN = TRUTH + DEVIATION * RNG.normal(size=(E, S, Q))
REAL = RNG.random((E, S)) < 0.7


def test_figures_are_those_of_scikit_learn():
    found = regression_statistics(MEAN, DEVIATION, TRUTH, REAL)
    truth, said = TRUTH[REAL], MEAN[REAL]
    assert found["absolute_error"].value == pytest.approx(metrics.mean_absolute_error(truth, said), rel=1e-9)
    error = metrics.root_mean_squared_error(truth.ravel(), said.ravel())
    assert found["rms_error"].value == pytest.approx(error, rel=1e-9)
    assert found["r2"].value == pytest.approx(metrics.r2_score(truth, said), rel=1e-6)
    for slot in range(S):
        real = REAL[:, slot]
        error = metrics.mean_absolute_error(TRUTH[real, slot], MEAN[real, slot])
        assert found[f"slot/{slot + 1}/absolute_error"].value == pytest.approx(error, rel=1e-9)
    assert {statistic.examples for name, statistic in found.items() if "/" not in name} == {int(REAL.any(1).sum())}


def test_an_honest_spread_covers_as_often_as_it_says():
    found = regression_statistics(MEAN, DEVIATION, TRUTH, REAL)
    assert found["coverage_95"].value == pytest.approx(0.95, abs=0.02)
    narrow = regression_statistics(MEAN, DEVIATION / 4, TRUTH, REAL)
    assert narrow["coverage_95"].value < 0.6
    assert found["crps"].value < narrow["crps"].value


def test_the_ranked_probability_score_is_that_of_draws():
    """CRPS is E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007, equation 20)."""
    some = tuple(array[:4] for array in (MEAN, DEVIATION, TRUTH))
    draws = some[0] + some[1] * RNG.normal(size=(20_000, *some[0].shape))
    score = np.abs(draws - some[2]).mean() - np.abs(draws[::2] - draws[1::2]).mean() / 2
    found = regression_statistics(*some, np.ones((4, S), bool))
    assert found["crps"].value == pytest.approx(score, abs=0.01)


def test_what_is_not_real_does_not_count():
    spoiled = np.where(REAL[..., None], TRUTH, np.nan)
    plain, other = (regression_statistics(MEAN, DEVIATION, truth, REAL) for truth in (TRUTH, spoiled))
    for name in plain:
        assert plain[name].value == other[name].value
