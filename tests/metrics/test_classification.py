"""Figures of classification against scikit-learn's, and temperatures against a known one."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from mmjax.metrics.classification import classification_statistics, cross_fit_temperatures, fit_temperature

NAMES = ("a", "b", "c", "d")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (300, 3, 4))
REAL = RNG.random((300, 3)) < 0.8
PROBABILITIES = softmax(LOGITS, -1)
# Drawn from the probabilities themselves, so that these are calibrated.
TRUTH = (RNG.random((300, 3, 1)) > PROBABILITIES.cumsum(-1)).sum(-1).clip(0, 3)


def test_figures_are_those_of_scikit_learn():
    found = {name: each.value for name, each in classification_statistics(PROBABILITIES, TRUTH, REAL, NAMES).items()}
    true, probabilities = TRUTH[REAL], PROBABILITIES[REAL]
    said = probabilities.argmax(-1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, said), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, said, average="macro"), abs=1e-9)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(true, probabilities, labels=range(4)), abs=1e-9)
    recalls = metrics.recall_score(true, said, average=None)
    assert [found[f"recall/{name}"] for name in NAMES] == pytest.approx(list(recalls), abs=1e-9)


def test_classes_that_do_not_occur_do_not_count():
    truth = np.where(TRUTH == 3, 0, TRUTH)
    probabilities = PROBABILITIES * [1, 1, 1, 0]
    found = classification_statistics(probabilities, truth, REAL, NAMES)
    expected = metrics.f1_score(truth[REAL], probabilities[REAL].argmax(-1), average="macro")
    assert found["macro_f1"].value == pytest.approx(expected, abs=1e-9)
    assert found["recall/d"].examples == 0
    assert np.isnan(found["recall/d"].value)


def test_the_calibration_error_bin_by_bin():
    found = classification_statistics(PROBABILITIES, TRUTH, REAL, NAMES)["calibration_error"].value
    best, right = PROBABILITIES.max(-1)[REAL], (PROBABILITIES.argmax(-1) == TRUTH)[REAL]
    error = 0.0
    for number in range(15):
        inside = (best > number / 15) & (best <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - best[inside].mean())
    assert found == pytest.approx(error, abs=1e-9)
    # What lies on an edge, 9 / 15, belongs to the bin below.
    edge = np.array([[[0.6, 0.4]], [[0.58, 0.42]]])
    two = classification_statistics(edge, np.array([[0], [1]]), np.ones((2, 1), bool), ("a", "b"))
    assert two["calibration_error"].value == pytest.approx(abs((1 - 0.6) - 0.58) / 2)
    # Answers of a coin, always sure of themselves, are wrong by half.
    sure = np.tile([1.0, 0.0], (1000, 1, 1))
    coin = np.arange(1000)[:, None] % 2
    alone = classification_statistics(sure, coin, np.ones((1000, 1), bool), ("a", "b"))
    assert alone["calibration_error"].value == pytest.approx(0.5, abs=1e-9)


def test_a_temperature_is_found_again_and_mends_what_is_too_sure():
    sharp = softmax(2.5 * LOGITS, -1)
    temperature = fit_temperature(sharp, TRUTH, REAL)
    assert temperature == pytest.approx(2.5, rel=0.15)
    found = classification_statistics(sharp, TRUTH, REAL, NAMES, np.full(len(TRUTH), temperature))
    right = classification_statistics(PROBABILITIES, TRUTH, REAL, NAMES)
    assert found["calibrated/log_loss"].value == pytest.approx(right["log_loss"].value, abs=0.01)
    assert found["calibrated/log_loss"].value < found["log_loss"].value - 0.05
    assert found["calibrated/calibration_error"].value < found["calibration_error"].value / 2
    assert fit_temperature(sharp, TRUTH, np.zeros_like(REAL)) == 1
    # Answers that are all right are not made surer than 100 of them can tell.
    certain = np.tile([0.99, 0.01], (100, 1, 1))
    assert 0.3 < fit_temperature(certain, np.zeros((100, 1), int), np.ones((100, 1), bool)) < 1


def test_temperatures_are_fitted_on_the_other_half():
    sharp = softmax(2.5 * LOGITS, -1)
    found = cross_fit_temperatures(sharp, TRUTH, REAL)
    assert found[0] == fit_temperature(sharp[1::2], TRUTH[1::2], REAL[1::2])
    assert found[1] == fit_temperature(sharp[::2], TRUTH[::2], REAL[::2])
    assert set(found[::2]) == {found[0]} != set(found[1::2]) == {found[1]}


def test_examples_are_counted_by_what_they_have():
    real = REAL.copy()
    real[:10] = False
    found = classification_statistics(PROBABILITIES, TRUTH, real, NAMES)
    assert found["accuracy"].examples <= real.any(1).sum()
    assert found["log_loss"].examples == real.any(1).sum()
