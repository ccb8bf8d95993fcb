"""Partial information decomposition of two modalities about a target: unique, redundant, synergy.

Williams & Beer 2010, in the definition of Bertschinger, Rauh, Olbrich, Jost & Ay 2014, "Quantifying unique
information". All amounts are in bits.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from mmjax.types import Information

GAP = 1e-6  # nats
ITERATIONS = 10_000
# Cells into which posteriors are sorted, and what their own mean counts beside the labels found in a cell.
CELLS = (4, 8, 16)
PRIOR_EXAMPLES = 20
ROUNDS = 10
TINY = 1e-300


def decompose_information(joint: Float[np.ndarray, "Y A B"]) -> Information:
    """The decomposition for a table of probabilities (or counts) of a target and two sources.

    With the minimum over all Q that share P's marginals of (Y, A) and of (Y, B), union = min I_Q(Y; A,B):

        unique_a = union - I(Y;B)    unique_b = union - I(Y;A)
        redundant = I(Y;A) + I(Y;B) - union    synergy = I(Y; A,B) - union

    to within about 1e-5 bits.

    Raises:
        ValueError: if an entry is negative or NaN, or all are zero.
    """
    if not (joint.min() >= 0 and joint.sum() > 0):
        raise ValueError("a joint table must have non-negative entries, not all zero")
    joint = joint / joint.sum(dtype=np.float64)
    joint = joint[joint.sum((1, 2)) > 0]
    with_a, with_b = joint.sum(2), joint.sum(1)
    about_a, about_b, both = (_mutual(table) for table in (with_a, with_b, joint.reshape(len(joint), -1)))
    union = _between(_union(with_a, with_b), max(about_a, about_b), min(about_a + about_b, both))
    return Information(union - about_b, union - about_a, about_a + about_b - union, both - union)


def estimate_information(
    posterior_a: Float[np.ndarray, "E K"],
    posterior_b: Float[np.ndarray, "E K"],
    posterior_ab: Float[np.ndarray, "E K"],
    truth: Int[np.ndarray, "E"],
) -> Information:
    """The decomposition for E held-out examples of K classes, from posteriors given A, B, and both.

    I(S;Y) is bounded from below by H(Y) minus the cross-entropy of the calibrated posterior (Barber & Agakov 2003), and
    is at least 0. Calibration is fitted on one half of the examples and tested on the other, both ways, so an over- or
    underconfident model loses nothing. The redundancy of `decompose_information` needs only how each source alone
    depends on Y, for which its posterior is sufficient: the posteriors are sorted into at most 16 cells z, and P(y, z)
    is the mean of the calibrated posteriors there. (Counted labels would have a bias of about (K - 1)(cells - 1) / (2 E
    ln 2) bits.) Cells lose some information, so the redundancy is taken as a share of the lesser of the two sources':

        redundant = min(I_A, I_B) * redundant of the tables / min(I(Y;Z_A), I(Y;Z_B))
        unique_a = I_A - redundant    unique_b = I_B - redundant    synergy = max(0, I_AB - I_A - I_B + redundant)

    Where a joint model knows less than its parts together, synergy is 0 and the total is that of the parts: at least
    max(I_A, I_B, I_AB).
    """
    present = np.bincount(truth, minlength=posterior_a.shape[1]) / len(truth)
    entropy = -float((present * np.log2(np.maximum(present, TINY))).sum())
    calibrated = [_calibrate(posterior, truth) for posterior in (posterior_a, posterior_b, posterior_ab)]
    losses = [[_cross_entropy(posterior, truth) for posterior, _ in ways] for ways in calibrated]
    about_a, about_b, both = (max(0.0, entropy - min(pair)) for pair in losses)
    # Tables blurred to different degrees would seem to say different things: both are calibrated in the same way.
    way = int(np.argmin(np.add(losses[0], losses[1])))
    with_a, with_b = (_joint(*ways[way], present) for ways in calibrated[:2])
    cells_a, cells_b = _mutual(with_a), _mutual(with_b)
    least = min(cells_a, cells_b)
    share = _between((cells_a + cells_b - _union(with_a, with_b)) / least, 0.0, 1.0) if least > 0 else 0.0
    redundant = share * min(about_a, about_b)
    synergy = max(0.0, both - about_a - about_b + redundant)
    return Information(about_a - redundant, about_b - redundant, redundant, synergy)


def _between(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))


def _mutual(table: Float[np.ndarray, "Y Z"]) -> float:
    """I(Y;Z) of a table of probabilities, in bits."""
    independent = table.sum(1, keepdims=True) * table.sum(0)
    some = table > 0
    return max(0.0, float((table[some] * np.log2(table[some] / independent[some])).sum()))


def _union(with_a: Float[np.ndarray, "Y A"], with_b: Float[np.ndarray, "Y B"]) -> float:
    """The minimum of I_Q(Y; A,B) in bits over all Q with these two marginals, which share P(Y) > 0.

    I_Q is the minimum over r(a,b) of sum_y P(y) KL(Q_y || r), and KL is jointly convex, so alternating between the two
    minimisations converges to the global minimum (Csiszar & Tusnady 1984). For fixed r, every Q_y is r scaled by u_y(a)
    and v_y(b) to its marginals (Sinkhorn 1967), here by one sweep from the previous scalings; for fixed Q, r is their
    mixture. Any scalings bound the minimum from below by

        sum_y P(y) (sum_a P(a|y) ln u_y(a) + sum_b P(b|y) ln v_y(b)) - ln max_ab sum_y P(y) u_y(a) v_y(b)

    whose last term is the largest growth of r in a step, and the stopping criterion.
    """
    target = with_a.sum(1)
    given_a, given_b = with_a / target[:, None], with_b / target[:, None]
    mixture = with_a.T @ given_b
    v = np.ones_like(given_b)
    for _ in range(ITERATIONS):
        # Where a source has no mass neither has its scaling: the floor only keeps 0 / 0 from being asked.
        u = given_a / np.maximum(v @ mixture.T, TINY)
        reached = u @ mixture
        missed = np.abs(reached * v - given_b).max()
        v = given_b / np.maximum(reached, TINY)
        growth = (target[:, None] * u).T @ v
        mixture = mixture * growth
        if growth.max() < 1 + GAP and missed < GAP:
            break
    logs = [np.log(np.where(given > 0, scaling, 1)) for given, scaling in ((given_a, u), (given_b, v))]
    return float((with_a * logs[0]).sum() + (with_b * logs[1]).sum()) / math.log(2)


def _cross_entropy(posterior: Float[np.ndarray, "E K"], truth: Int[np.ndarray, "E"]) -> float:
    return -float(np.log2(posterior[np.arange(len(truth)), truth]).mean())


def _sums(posterior: Float[np.ndarray, "E K"], cell: Int[np.ndarray, "E"]) -> Float[np.ndarray, "Z K"]:
    """The sum of the posteriors in each cell."""
    return (cell == np.arange(cell.max() + 1)[:, None]).astype(np.float64) @ posterior


def _joint(
    posterior: Float[np.ndarray, "E K"], cell: Int[np.ndarray, "E"], present: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "Y Z"]:
    """P(y, z) from the posteriors, for classes that are present, with their shares of examples."""
    table = _sums(posterior, cell).T[present > 0]
    return table * (present[present > 0] / table.sum(1))[:, None]


Calibrated = tuple[Float[np.ndarray, "E K"], Int[np.ndarray, "E"]]


def _calibrate(posterior: Float[np.ndarray, "E K"], truth: Int[np.ndarray, "E"]) -> list[Calibrated]:
    """Posteriors calibrated on the other half of the examples, and the cells that they lie in.

    In two ways: by a temperature (Guo et al. 2017), and by the labels in cells of similar posteriors (Zadrozny & Elkan
    2001), with the number of cells that has the lowest cross-entropy. A temperature corrects neither label smoothing
    nor noise among classes of equal probability; cells are coarse.
    """
    logits = np.log(np.maximum(posterior, 1e-12, dtype=np.float64))
    even = np.arange(len(truth)) % 2 == 0
    tempered = np.empty_like(logits)
    for half in (even, ~even):
        tempered[~half] = _tempered(logits[~half], _sharpness(logits[half], truth[half]), int(half.sum()))
    candidates = []
    for count in CELLS:
        cell = _cells(tempered, count)
        means = _sums(tempered, cell) / np.bincount(cell)[:, None]
        binned = np.empty_like(tempered)
        for half in (even, ~even):
            labels = np.zeros_like(means)
            np.add.at(labels, (cell[half], truth[half]), 1)
            smoothed = (labels + PRIOR_EXAMPLES * means) / (labels.sum(1, keepdims=True) + PRIOR_EXAMPLES)
            binned[~half] = smoothed[cell[~half]]
        candidates.append((binned, cell))
    return [(tempered, cell), min(candidates, key=lambda candidate: _cross_entropy(candidate[0], truth))]


def _tempered(logits: Float[np.ndarray, "E K"], sharpness: float, examples: int) -> Float[np.ndarray, "E K"]:
    """softmax(sharpness * logits), smoothed by Laplace's rule of succession.

    Without the smoothing a model without an error in one half would become infinitely confident, and a single error in
    the other would cost everything.
    """
    powers = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
    doubt = 1 / (examples + 2)
    return (1 - doubt) * powers / powers.sum(1, keepdims=True) + doubt / logits.shape[1]


def _sharpness(logits: Float[np.ndarray, "E K"], truth: Int[np.ndarray, "E"]) -> float:
    """The inverse temperature with the lowest cross-entropy."""
    from scipy.optimize import minimize_scalar

    def loss(log_sharpness: float) -> float:
        return _cross_entropy(_tempered(logits, np.exp(log_sharpness), len(truth)), truth)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-2}).x))


def _cells(posterior: Float[np.ndarray, "E K"], count: int) -> Int[np.ndarray, "E"]:
    """The cell of each posterior, out of at most `count` from 0, none empty.

    k-means with the divergence KL(p(y|x) || p(y|z)), which loses the least of I(X;Y) (Dhillon, Mallela & Kumar 2003),
    started by k-means++ (Arthur & Vassilvitskii 2007) with fixed random numbers.
    """
    rng = np.random.default_rng(0)
    negative_entropy = (posterior * np.log(posterior)).sum(1)
    centres = posterior.mean(0, keepdims=True)
    nearest = np.full(len(posterior), np.inf)
    while len(centres) < count:
        nearest = np.minimum(nearest, negative_entropy - posterior @ np.log(centres[-1]))
        odds = np.maximum(nearest, 1e-9)  # Equal posteriors have a divergence of 0, or a little less.
        centres = np.vstack((centres, posterior[rng.choice(len(posterior), p=odds / odds.sum())]))
    for _ in range(ROUNDS):
        found = np.argmax(posterior @ np.log(centres).T, axis=1)
        cell = np.unique(found, return_inverse=True)[1]
        centres = _sums(posterior, cell) / np.bincount(cell)[:, None]
    return cell
