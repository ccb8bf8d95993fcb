"""Regression metrics: errors, explained variance, and calibration of the predicted deviation."""

import numpy as np
from jaxtyping import Bool, Float

from mmjax.metrics.statistics import Statistic, Sums

MOST_SLOTS = 24


def regression_statistics(
    mean: Float[np.ndarray, "E S Q"],
    deviation: Float[np.ndarray, "E S Q"],
    truth: Float[np.ndarray, "E S Q"],
    real: Bool[np.ndarray, "E S"],
) -> dict[str, Statistic]:
    """Metrics of Gaussian predictions of Q numbers in S slots, of which `real` ones count.

    absolute_error      mean |truth - mean|
    rms_error           the root of the mean of (truth - mean)^2
    r2                  1 - sum of (truth - mean)^2 / sum of (truth - its mean)^2, averaged over the Q numbers
    coverage_95         share of truths inside mean +- 1.96 deviations
    crps                continuous ranked probability score of the Gaussian (Gneiting & Raftery 2007, equation 5)
    slot/K/absolute_error  of every slot separately (of a forecast: by horizon), where there are 2 to 24
    """
    from scipy.special import ndtr

    counted = np.broadcast_to(real[..., None], mean.shape).astype(np.float64)
    true, predicted, spread = (
        np.where(counted > 0, array, fill) for array, fill in ((truth, 0), (mean, 0), (deviation, 1))
    )
    errors = (true - predicted).astype(np.float64)
    scaled = errors / spread
    density = np.exp(-np.square(scaled) / 2) / np.sqrt(2 * np.pi)
    scores = counted * spread * (scaled * (2 * ndtr(scaled) - 1) + 2 * density - 1 / np.sqrt(np.pi))
    numbers = counted.sum((1, 2))

    def mean_of(values: Float[np.ndarray, "E S Q"]) -> Statistic:
        return Statistic.ratio(values.sum((1, 2)), numbers)

    squares, absolute = np.square(errors), np.abs(errors)
    by_number = [
        part.sum(1) for part in (squares, true.astype(np.float64), np.square(true.astype(np.float64)), counted)
    ]
    found = {
        "absolute_error": mean_of(absolute),
        "rms_error": Statistic(np.stack([squares.sum((1, 2)), numbers], 1), _root),
        "r2": Statistic(np.concatenate(by_number, 1), _explained),
        "coverage_95": mean_of(counted * (absolute < 1.96 * spread)),
        "crps": mean_of(scores),
    }
    if 1 < mean.shape[1] <= MOST_SLOTS:
        for slot in range(mean.shape[1]):
            both = absolute[:, slot].sum(1), counted[:, slot].sum(1)
            found[f"slot/{slot + 1}/absolute_error"] = Statistic.ratio(*both)
    return found


def _root(sums: Sums) -> Float[np.ndarray, "R"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(sums[:, 0] / sums[:, 1])


def _explained(sums: Sums) -> Float[np.ndarray, "R"]:
    squares, totals, powers, counts = np.split(sums, 4, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (1 - squares / (powers - totals**2 / counts)).mean(1)
