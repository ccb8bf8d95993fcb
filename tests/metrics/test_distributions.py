"""Distances of feature clouds against SciPy's matrix root, loops over all pairs, and scikit-learn's neighbours."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from sklearn.neighbors import NearestNeighbors

from mmjax.errors import UserError
from mmjax.metrics import distributions
from mmjax.metrics.distributions import distribution_metrics, frechet_distance, kernel_distance, neighbour_metrics


def clouds(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated Gaussians that overlap, as the float32 that models give."""
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(count, size)) @ rng.normal(size=(size, size))
    made = rng.normal(size=(count + 7, size)) @ rng.normal(size=(size, size)) * 0.8 + 0.5
    return real.astype(np.float32), made.astype(np.float32)


def rooted_frechet(real: np.ndarray, made: np.ndarray) -> float:
    """The formula as it is written."""
    real, made = real.astype(np.float64), made.astype(np.float64)
    c, d = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d).real
    return float(((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root))


@pytest.mark.parametrize("size", [1, 2, 8, 24])
def test_frechet_distance_is_the_formula_with_a_matrix_root(size):
    real, made = clouds(200, size)
    if size == 1:
        by_hand = (real.mean() - made.mean()) ** 2 + (real.std(ddof=1) - made.std(ddof=1)) ** 2
        assert frechet_distance(real, made) == pytest.approx(by_hand, rel=1e-5)
    else:
        assert frechet_distance(real, made) == pytest.approx(rooted_frechet(real, made), rel=1e-6)


def test_frechet_distance_of_fewer_examples_than_features():
    """In the few dimensions that the examples span, where the matrices have full rank, the formula is sound."""
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(12, 5)), 1 + 2 * rng.normal(size=(9, 5))
    turned, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    wide_real, wide_made = real @ turned[:5], made @ turned[:5]
    assert frechet_distance(wide_real, wide_made) == pytest.approx(rooted_frechet(real, made), rel=1e-9)
    assert frechet_distance(wide_real, wide_real) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(wide_real, wide_real + 1) == pytest.approx(64)
    # Two examples each, in two directions at right angles: nothing is shared, and all variances count.
    assert frechet_distance(np.array([[1.0, 0], [-1, 0]]), np.array([[0, 1.0], [0, -1]])) == pytest.approx(2 + 2)


def slow_kernel_distance(real: np.ndarray, made: np.ndarray) -> float:
    def kernel(x, y):
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(some, 2)]) for some in (real, made)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in real for y in made])


@pytest.mark.parametrize("block_elements", [1 << 22, 100])
def test_kernel_distance_is_the_mean_over_pairs(block_elements, monkeypatch):
    monkeypatch.setattr(distributions, "BLOCK_ELEMENTS", block_elements)
    real, made = (cloud.astype(np.float64) for cloud in clouds(30, 6))
    assert kernel_distance(real, made) == pytest.approx(slow_kernel_distance(real, made), rel=1e-9)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    same = np.array([kernel_distance(*rng.normal(size=(2, 20, 4))) for _ in range(400)])
    assert abs(same.mean()) < 3 * same.std() / np.sqrt(len(same))
    assert 0.3 < (same < 0).mean() < 0.8


def slow_neighbours(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    def radii(cloud, k):
        # The first neighbour found is the vector itself.
        return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(cloud).kneighbors(cloud)[0][:, k]

    def inside(points, centres, radius):
        distances = np.linalg.norm(points[:, None] - centres, axis=-1)
        return distances <= radius

    wide = inside(made, real, radii(real, 5))
    return {
        "precision": inside(made, real, radii(real, 3)).any(1).mean(),
        "recall": inside(real, made, radii(made, 3)).any(1).mean(),
        "density": wide.sum(1).mean() / 5,
        "coverage": wide.any(0).mean(),
    }


@pytest.mark.parametrize("block_elements", [1 << 22, 500])
@pytest.mark.parametrize(("size", "seed"), [(2, 0), (3, 1), (16, 2)])
def test_neighbour_metrics_are_those_of_all_pairs(size, seed, block_elements, monkeypatch):
    monkeypatch.setattr(distributions, "BLOCK_ELEMENTS", block_elements)
    real, made = (cloud.astype(np.float64) for cloud in clouds(80, size, seed))
    found = neighbour_metrics(real, made)
    assert found == pytest.approx(slow_neighbours(real, made), abs=1e-12)
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_neighbour_metrics_by_hand():
    real = np.arange(8.0)[:, None]
    # To the third neighbour it is 3 steps from the ends, 2 from elsewhere; to the fifth 5, 4, 3, 3, 3, 3, 4, 5.
    made = np.array([[-3.0], [-3.5], [9.5], [20.0], [21.0], [22.0]])
    found = neighbour_metrics(real, made)
    assert found["precision"] == pytest.approx(2 / 6)  # -3 lies on the ball of 0, 9.5 in that of 7
    # The made ones reach, to their third neighbour, 23, 23.5, 12.5, ...: 9.5 alone reaches from -3 to 22.
    assert found["recall"] == 1
    # -3: in the balls of 0 (reach 5), 1 (4); -3.5: of 0; 9.5: of 7 (5), 6 (4).
    assert found["density"] == pytest.approx((2 + 1 + 2) / (5 * 6))
    assert found["coverage"] == pytest.approx(4 / 8)


@pytest.mark.parametrize("offset", [0, 1e5])
def test_copies_of_neighbours_lie_on_the_balls_whatever_the_rounding(offset):
    """Whole numbers, whose distances are exact: generated vectors are the real ones in another order, with ties."""
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 3, (200, 32)) * 1000.0 + offset
    found = neighbour_metrics(corners, rng.permutation(corners))
    squares = ((corners[:, None] - corners) ** 2).sum(-1)
    held = squares <= np.sort(squares, 1)[:, 5:6]
    assert held.sum() > 6 * 200  # some have several fifth neighbours
    assert found == {"precision": 1, "recall": 1, "density": pytest.approx(held.sum() / (5 * 200)), "coverage": 1}


def test_what_falls_apart_is_seen():
    rng = np.random.default_rng(4)
    real = rng.normal(size=(300, 8))
    one_mode = np.repeat(rng.normal(size=(1, 8)) * 0.1, 300, 0) + rng.normal(size=(300, 8)) * 0.01
    found = distribution_metrics(real, one_mode)
    assert set(found) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert found["precision"] == 1
    assert found["recall"] < 0.05
    assert found["coverage"] < 0.9
    same = distribution_metrics(real, rng.normal(size=(300, 8)))
    assert same["fid"] < found["fid"] / 10
    assert same["density"] == pytest.approx(1, abs=0.2)


def test_mistakes_are_one_sentence():
    real, made = clouds(20, 4)
    with pytest.raises(UserError, match=r"^5 generated examples are too few to compare: at least 6 are needed$"):
        distribution_metrics(real, made[:5])
    broken = made.copy()
    broken[3, 1] = np.nan
    with pytest.raises(UserError, match="features of generated examples are not finite"):
        frechet_distance(real, broken)
