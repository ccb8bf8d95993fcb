"""Probes of known features against scikit-learn's, and against what can be counted by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mmjax.metrics import transfer

KINDS = 4
RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, KINDS, 300)
TRUTH = RNG.integers(0, KINDS, 101)
CENTRES = RNG.normal(size=(KINDS, 6))
# Of very different scales, and far from zero.
SCALES = np.array([1, 10, 0.1, 1, 1, 100])
TRAIN = ((CENTRES[CLASSES] + RNG.normal(size=(300, 6))) * SCALES + 5).astype(np.float32)
TEST = ((CENTRES[TRUTH] + RNG.normal(size=(101, 6))) * SCALES + 5).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make this ten times as slow."""
    with threadpool_limits(1):
        yield


def standardised(train, test):
    scaler = StandardScaler().fit(train.astype(np.float64))
    return scaler.transform(train.astype(np.float64)), scaler.transform(test.astype(np.float64))


def regression(penalty, train, classes, test):
    model = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-10, max_iter=10_000)
    return model.fit(train, classes).predict_proba(test)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_logistic_regression_is_that_of_scikit_learn(penalty):
    train, test = standardised(TRAIN, TEST)
    found = transfer.logistic_regression(train, CLASSES, test, KINDS, penalty)
    assert found == pytest.approx(regression(penalty, train, CLASSES, test), abs=1e-4)


def test_the_linear_probe_is_a_regression_of_standardised_features():
    found = transfer.linear_probe(TRAIN, CLASSES, TEST, KINDS)
    train, test = standardised(TRAIN, TEST)
    each = [transfer.logistic_regression(train, CLASSES, test, KINDS, penalty) for penalty in transfer.PENALTIES]
    chosen = [index for index, said in enumerate(each) if np.allclose(said, found, atol=1e-6)]
    assert len(chosen) == 1
    assert found == pytest.approx(regression(transfer.PENALTIES[chosen[0]], train, CLASSES, test), abs=1e-4)
    assert (found.argmax(1) == TRUTH).mean() > 0.6
    # The scale of a feature says nothing, and neither does one that never changes.
    other = [np.pad(features / SCALES, ((0, 0), (0, 1)), constant_values=3.0) for features in (TRAIN, TEST)]
    assert transfer.linear_probe(other[0], CLASSES, other[1], KINDS) == pytest.approx(found, abs=1e-5)


def test_features_that_say_nothing_are_held_down():
    noise = np.random.default_rng(1)
    train, test = noise.normal(size=(300, 50)), noise.normal(size=(50, 50))
    scaled, others = standardised(train, test)
    most = transfer.logistic_regression(scaled, CLASSES, others, KINDS, max(transfer.PENALTIES))
    assert transfer.linear_probe(train, CLASSES, test, KINDS) == pytest.approx(most, abs=1e-6)


def test_classes_that_were_not_seen_are_not_said():
    fewer = np.where(CLASSES == 2, 1, CLASSES)
    for said in (
        transfer.linear_probe(TRAIN, fewer, TEST, KINDS),
        transfer.k_nearest(TRAIN, fewer, TEST, KINDS),
    ):
        assert said.shape == (101, KINDS)
        assert said.sum(1) == pytest.approx(1)
        assert not said[:, 2].any()
    assert not transfer.few_shot(TRAIN, fewer, TEST, np.full(101, 2), 5).any()
    # One example, or one class: that is what is said.
    for count in (1, 2):
        said = transfer.linear_probe(TRAIN[:count], np.full(count, 3), TEST, KINDS)
        assert said[:, 3] == pytest.approx(1)


@pytest.mark.parametrize("neighbours", [1, 20])
def test_nearest_neighbours_are_those_of_scikit_learn(neighbours, monkeypatch):
    reference = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    expected = reference.fit(TRAIN.astype(np.float64), CLASSES).predict_proba(TEST.astype(np.float64))
    assert transfer.k_nearest(TRAIN, CLASSES, TEST, KINDS, neighbours) == pytest.approx(expected, abs=1e-6)
    # A few test examples at a time, the last time fewer.
    monkeypatch.setattr(transfer, "BLOCK_ELEMENTS", 7 * 300)
    assert transfer.k_nearest(TRAIN, CLASSES, TEST, KINDS, neighbours) == pytest.approx(expected, abs=1e-6)


def test_there_may_be_fewer_neighbours_than_asked_for():
    said = transfer.k_nearest(TRAIN[:3], np.array([0, 1, 1]), TEST, KINDS)
    assert said[:, :2].sum(1) == pytest.approx(1)
    assert (said[:, :2] > 0).all()


def test_a_few_examples_are_those_drawn():
    train, test = TRAIN / SCALES, TEST / SCALES
    found = transfer.few_shot(train, CLASSES, test, TRUTH, 5, draws=3)
    right = []
    for draw in range(3):
        rng = np.random.default_rng((5, draw))
        rows = np.concatenate([rng.permutation(np.flatnonzero(kind == CLASSES))[:5] for kind in range(KINDS)])
        right.append(NearestCentroid().fit(train[rows], CLASSES[rows]).predict(test) == TRUTH)
    assert found == pytest.approx(np.mean(right, 0))
    # All there are, whatever the draw.
    every = transfer.few_shot(train, CLASSES, test, TRUTH, 1000)
    assert every == pytest.approx(1.0 * (NearestCentroid().fit(train, CLASSES).predict(test) == TRUTH))
    assert transfer.few_shot(train, CLASSES, test, TRUTH, 1).mean() < found.mean() <= every.mean() + 0.05
