"""Transfer of features: linear probe, nearest neighbours, and few-shot classification.

Every function takes features of training examples with their classes, indices into a list of K classes, and features of
test examples.
"""

import numpy as np
from jaxtyping import Float, Int

# Of the linear probe: how strongly its weights may be held down, and the share of examples that decide on it.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
HELD_OUT = 0.2
# Of the nearest neighbours, as in the papers.
NEIGHBOURS, TEMPERATURE = 20, 0.07
DRAWS = 20
# A block of similarities takes 32 MiB.
BLOCK_ELEMENTS = 1 << 22


def linear_probe(
    train: Float[np.ndarray, "N D"], classes: Int[np.ndarray, "N"], test: Float[np.ndarray, "E D"], num_classes: int
) -> Float[np.ndarray, "E K"]:
    """Class probabilities by multinomial logistic regression on standardised features.

    Alain & Bengio 2017. The penalty, one of PENALTIES, is the one with the lowest loss on a held-out fifth of the
    training examples; the weights are then fitted to all of them.
    """
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1)
    train, test = (train - mean) / scale, (test - mean) / scale
    held = np.random.default_rng(0).permutation(len(train)) < HELD_OUT * len(train)

    def loss(penalty: float) -> float:
        predicted = logistic_regression(train[~held], classes[~held], train[held], num_classes, penalty)
        return -float(np.log(np.maximum(predicted[np.arange(len(predicted)), classes[held]], 1e-12)).mean())

    # Of few examples none are left when some are held out.
    penalty = min(PENALTIES, key=loss) if 0 < held.sum() < len(train) else PENALTIES[0]
    return logistic_regression(train, classes, test, num_classes, penalty)


def logistic_regression(
    train: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N"],
    test: Float[np.ndarray, "E D"],
    num_classes: int,
    penalty: float,
) -> Float[np.ndarray, "E K"]:
    """Class probabilities p = softmax(x W + b), where W and b minimise mean(-log p) + penalty / 2 |W|^2.

    A class that no training example has gets 0. By L-BFGS with all examples at once (Liu & Nocedal 1989).
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    seen, places = np.unique(classes, return_inverse=True)
    train, hot = train.astype(np.float64), np.eye(len(seen))[places]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        bias, weights = flat[: len(seen)], flat[len(seen) :].reshape(-1, len(seen))
        logs = log_softmax(train @ weights + bias, 1)
        error = (np.exp(logs) - hot) / len(train)
        slope = train.T @ error + penalty * weights
        value = penalty / 2 * np.square(weights).sum() - np.vdot(logs, hot) / len(train)
        return value, np.concatenate([error.sum(0), slope.ravel()])

    start = np.zeros((1 + train.shape[1]) * len(seen))
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    probabilities = np.zeros((len(test), num_classes))
    probabilities[:, seen] = softmax(test @ found[len(seen) :].reshape(-1, len(seen)) + found[: len(seen)], 1)
    return probabilities


def k_nearest(
    train: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N"],
    test: Float[np.ndarray, "E D"],
    num_classes: int,
    neighbours: int = NEIGHBOURS,
) -> Float[np.ndarray, "E K"]:
    """Class probabilities by votes of the nearest training examples, weighted by exp(cosine / 0.07).

    The weighted nearest neighbours of Wu et al. (2018, section 3.4), as many as in DINO (Caron et al. 2021).
    """
    train, test = _unit(train), _unit(test)
    neighbours = min(neighbours, len(train))
    probabilities = np.zeros((len(test), num_classes))
    block = max(1, BLOCK_ELEMENTS // len(train))
    for begin in range(0, len(test), block):
        part = probabilities[begin : begin + block]
        similarity = test[begin : begin + block] @ train.T
        nearest = np.argpartition(similarity, -neighbours)[:, -neighbours:]
        # No cosine is above 1, so no weight is.
        weights = np.exp((np.take_along_axis(similarity, nearest, 1) - 1) / TEMPERATURE)
        np.add.at(part, (np.arange(len(part))[:, None], classes[nearest]), weights)
    return probabilities / probabilities.sum(1, keepdims=True)


def few_shot(
    train: Float[np.ndarray, "N D"],
    classes: Int[np.ndarray, "N"],
    test: Float[np.ndarray, "E D"],
    truth: Int[np.ndarray, "E"],
    shots: int,
    draws: int = DRAWS,
) -> Float[np.ndarray, "E"]:
    """How often each test example is classified correctly from a few training examples of each class.

    The mean over draws of `shots` training examples per class. The prediction is the class whose drawn examples' mean
    is nearest (Snell et al. 2017). A class with fewer examples uses all of them.
    """
    seen = np.unique(classes)
    # Rounding is relative to the squares of features, and all that counts is where they differ.
    centre = train.mean(0, dtype=np.float64)
    train, test = train - centre, test - centre
    right = np.zeros(len(test))
    for draw in range(draws):
        rng = np.random.default_rng((shots, draw))
        drawn = [rng.permutation(np.flatnonzero(classes == kind))[:shots] for kind in seen]
        means = np.stack([train[rows].mean(0) for rows in drawn])
        # Squared distances, less what is the same for all classes.
        distances = np.square(means).sum(1) - 2 * test @ means.T
        right += seen[distances.argmin(1)] == truth
    return right / draws


def _unit(features: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Vectors scaled to length 1; zeros stay zeros."""
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
