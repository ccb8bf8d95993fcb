"""Distances between the distributions of real and generated examples' features."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from mmjax.errors import UserError

# Of the k-nearest-neighbour figures, as in the papers.
NEIGHBOURS, NEIGHBOURS_DENSITY = 3, 5
# What squared distances may be off by, relative to the vectors' squares.
ROUNDING = 1e-10
# A block's distances or similarities take 32 MiB.
BLOCK_ELEMENTS = 1 << 22


def distribution_metrics(real: Float[np.ndarray, "E F"], generated: Float[np.ndarray, "G F"]) -> dict[str, float]:
    """All metrics of this file: fid, kid, precision, recall, density and coverage.

    They depend on the network that computes the features. All but kid change with the number of examples, so compare
    only at equal numbers.

    Raises:
        UserError: fewer than 6 examples of either kind, or features that are not finite.
    """
    return {
        "fid": frechet_distance(real, generated),
        "kid": kernel_distance(real, generated),
        **neighbour_metrics(real, generated),
    }


def frechet_distance(real: Float[np.ndarray, "E F"], generated: Float[np.ndarray, "G F"]) -> float:
    """The squared Frechet distance of two Gaussians fitted to features (FID: Heusel et al. 2017, eq. 6).

        |m - w|^2 + tr(C + D - 2 (C D)^(1/2))    with the means m, w and the unbiased covariances C, D

    With C = A'A and D = B'B, A and B being the centred features, the trace of the root is the sum of the singular
    values of A B'. So no covariance is squared or rooted, and there may be fewer examples than features. It is biased
    upwards, by about 1 / E.
    """
    real, generated = _checked(real, generated, least=2)
    (m, a), (w, b) = _gaussian(real), _gaussian(generated)
    distance = ((m - w) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    return max(0.0, float(distance))


def _gaussian(features: Float[np.ndarray, "E F"]) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "R F"]]:
    """The mean, and a root R of the unbiased covariance R'R, of at most F rows."""
    mean = features.mean(0)
    return mean, np.linalg.qr((features - mean) / np.sqrt(len(features) - 1)).R


def kernel_distance(real: Float[np.ndarray, "E F"], generated: Float[np.ndarray, "G F"]) -> float:
    """The squared MMD under the kernel (x.y / F + 1)^3 (KID: Binkowski et al. 2018, section 4).

    The unbiased estimate over all pairs, without the subsets that the paper averages over to save time: those have the
    same mean and more noise. Where the distributions are equal it is 0 on average, and negative half of the time.
    """
    real, generated = _checked(real, generated, least=2)
    within = sum(_kernel_sum(x, x, paired=True) / (len(x) * (len(x) - 1)) for x in (real, generated))
    return within - 2 * _kernel_sum(real, generated, paired=False) / (len(real) * len(generated))


def _kernel_sum(x: Float[np.ndarray, "E F"], y: Float[np.ndarray, "G F"], *, paired: bool) -> float:
    """The sum of the kernel over all pairs; where they are `paired`, without a vector and itself."""
    size = x.shape[1]
    total = sum(float(((x[rows] @ y.T / size + 1) ** 3).sum()) for rows in _blocks(len(x), len(y)))
    return total - float((((x**2).sum(1) / size + 1) ** 3).sum()) if paired else total


def neighbour_metrics(real: Float[np.ndarray, "E F"], generated: Float[np.ndarray, "G F"]) -> dict[str, float]:
    """Overlap of the two sets, by balls from each vector to its k-th neighbour in its own set.

    precision  share of the generated inside the ball of any real one, k = 3 (Kynkaanniemi et al. 2019, equation 2)
    recall     share of the real inside the ball of any generated one, k = 3
    density    mean number of real balls that a generated one lies in, divided by k = 5 (Naeem et al. 2020, equation 4)
    coverage   share of the balls of real ones that contain any generated one, k = 5 (equation 6)

    Balls are Euclidean and closed. Precision, recall and coverage lie in [0, 1]; density can be above 1.
    """
    real, generated = _checked(real, generated, least=NEIGHBOURS_DENSITY + 1)
    real, generated = real - real.mean(0), generated - real.mean(0)  # which keeps rounding small
    near, wide = _reach(real, (NEIGHBOURS, NEIGHBOURS_DENSITY))
    (made_near,) = _reach(generated, (NEIGHBOURS,))
    precise, inside = np.zeros(len(generated), bool), 0
    recalled, covered = np.zeros((2, len(real)), bool)
    for rows in _blocks(len(real), len(generated)):
        squares = _squared_distances(real[rows], generated)
        precise |= (squares <= near[rows, None]).any(0)
        recalled[rows] = (squares <= made_near).any(1)
        held = squares <= wide[rows, None]
        covered[rows] = held.any(1)
        inside += int(held.sum())
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": inside / (NEIGHBOURS_DENSITY * len(generated)),
        "coverage": float(covered.mean()),
    }


def _reach(features: Float[np.ndarray, "E F"], neighbours: tuple[int, ...]) -> Float[np.ndarray, "K E"]:
    """The squared distance of every vector to its k-th neighbour, for every k, plus rounding error."""
    squares = np.empty((len(neighbours), len(features)))
    for rows in _blocks(len(features), len(features)):
        # The nearest of all, at place 0, is the vector itself, or as good as it.
        every = _squared_distances(features[rows], features)
        squares[:, rows] = np.partition(every, neighbours, axis=1)[:, neighbours].T
    # A copy of a neighbour must lie on the ball. No vector there is longer than the radius and its centre together.
    return squares + ROUNDING * (squares + (features**2).sum(1))


def _squared_distances(x: Float[np.ndarray, "R F"], y: Float[np.ndarray, "G F"]) -> Float[np.ndarray, "R G"]:
    """By a matrix product: several times faster than by differences, rounded relative to the lengths."""
    return (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a table."""
    size = max(1, BLOCK_ELEMENTS // columns)
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def _checked(
    real: Float[np.ndarray, "E F"], generated: Float[np.ndarray, "G F"], *, least: int
) -> tuple[Float[np.ndarray, "E F"], Float[np.ndarray, "G F"]]:
    """Both in double precision; UserError where there are too few, or some are not finite."""
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < least:
            raise UserError(f"{len(features)} {name} examples are too few to compare: at least {least} are needed")
        if not np.isfinite(features).all():
            raise UserError(f"the features of {name} examples are not finite: the model diverged")
    return real.astype(np.float64), generated.astype(np.float64)
