"""Classification metrics: accuracy, F1, recall by class, and calibration."""

import numpy as np
from jaxtyping import Bool, Float, Int

from mmjax.metrics.statistics import Statistic, Sums

BINS = 15


def classification_statistics(
    probabilities: Float[np.ndarray, "E S K"],
    truth: Int[np.ndarray, "E S"],
    real: Bool[np.ndarray, "E S"],
    names: tuple[str, ...],
    temperature: Float[np.ndarray, "E"] | None = None,
) -> dict[str, Statistic]:
    """Metrics of E examples' answers in S slots each, of which the `real` ones count.

    accuracy                share in which the most probable class is the true one
    log_loss                -log of the true class's probability, nats
    macro_f1                mean over the classes that occur, or are predicted, of 2 hits / (predicted + true)
    recall/NAME             share of a class's answers that are found
    calibration_error       sum over 15 equal bins of the largest probability of |hits - sum of it|, per answer (Guo et
                            al. 2017, ECE)
    calibrated/...          log_loss and calibration_error with logits divided by each example's `temperature`
    """
    num_classes = len(names)
    predicted = probabilities.argmax(-1)
    counted = real.astype(np.float64)
    right = counted * (predicted == truth)
    hot = counted[..., None] * (truth[..., None] == np.arange(num_classes))
    hits = (hot * (predicted == truth)[..., None]).sum(1)
    guessed = (counted[..., None] * (predicted[..., None] == np.arange(num_classes))).sum(1)
    found = {
        "accuracy": Statistic.ratio(right.sum(1), counted.sum(1)),
        "macro_f1": Statistic(np.concatenate([hits, guessed + hot.sum(1)], 1), _macro_f1),
        **_confidence(probabilities, truth, counted),
    }
    for place, name in enumerate(names):
        found[f"recall/{name}"] = Statistic.ratio(hits[:, place], hot.sum(1)[:, place])
    if temperature is not None:
        warm = _confidence(_tempered(probabilities, temperature), truth, counted)
        found |= {f"calibrated/{name}": statistic for name, statistic in warm.items()}
    return found


def cross_fit_temperatures(
    probabilities: Float[np.ndarray, "E S K"], truth: Int[np.ndarray, "E S"], real: Bool[np.ndarray, "E S"]
) -> Float[np.ndarray, "E"]:
    """Every example's temperature (see `fit_temperature`), fitted on the other half of the examples."""
    odd = np.arange(len(truth)) % 2 == 1
    even, other = (fit_temperature(probabilities[half], truth[half], real[half]) for half in (odd, ~odd))
    return np.where(odd, other, even)


def fit_temperature(
    probabilities: Float[np.ndarray, "E S K"], truth: Int[np.ndarray, "E S"], real: Bool[np.ndarray, "E S"]
) -> float:
    """The temperature of logits with the lowest mean -log probability of the truth (Guo et al. 2017).

    Its logarithm has a standard normal prior, because without one there is no minimum where every answer is right. It
    lies between 1/100 and 100, and is 1 where no answer is real.
    """
    from scipy.optimize import minimize_scalar

    if not real.any():
        return 1.0
    logs, true = np.log(np.maximum(probabilities[real].astype(np.float64), 1e-300)), truth[real]

    def loss(log_temperature: float) -> float:
        scaled = logs / np.exp(log_temperature)
        losses = _log_sum(scaled) - scaled[np.arange(len(true)), true]
        return float(losses.mean() + log_temperature**2 / 2 / len(true))

    edge = np.log(100)
    return float(np.exp(minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6}).x))


def _confidence(probabilities: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> dict[str, Statistic]:
    """The metrics that depend on the answers' confidence."""
    of_truth = np.take_along_axis(probabilities, truth[..., None], -1)[..., 0].astype(np.float64)
    losses = -np.log(np.maximum(of_truth, 1e-300))
    best = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == truth
    # A bin holds its upper edge, as in the paper.
    bins = np.clip(np.ceil(best * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = (counted * (right - best))[..., None] * (bins[..., None] == np.arange(BINS))
    columns = np.concatenate([gaps.sum(1), counted.sum(1, keepdims=True)], 1)
    return {
        "log_loss": Statistic.ratio(np.where(counted > 0, losses, 0).sum(1), counted.sum(1)),
        "calibration_error": Statistic(columns, _calibration_error),
    }


def _tempered(probabilities: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-300)) / temperature[:, None, None]
    return np.exp(logs - _log_sum(logs)[..., None])


def _log_sum(logs: np.ndarray) -> np.ndarray:
    from scipy.special import logsumexp

    return logsumexp(logs, axis=-1)


def _macro_f1(sums: Sums) -> Float[np.ndarray, "R"]:
    hits, both = np.split(sums, 2, 1)
    occurs = both > 0
    scores = np.where(occurs, 2 * hits / np.where(occurs, both, 1), 0)
    with np.errstate(invalid="ignore"):
        return scores.sum(1) / occurs.sum(1)


def _calibration_error(sums: Sums) -> Float[np.ndarray, "R"]:
    with np.errstate(invalid="ignore"):
        return np.abs(sums[:, :BINS]).sum(1) / sums[:, BINS]
