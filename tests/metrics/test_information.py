"""Decompositions known in closed form, one solved by another method, and estimates from posteriors that are off."""

import itertools

import numpy as np
import pytest
import scipy.optimize

from mmjax.metrics.information import Information, decompose_information, estimate_information


def gate(target, noise: float = 0.0) -> np.ndarray:
    """P(y, a, b) of y = target(a, b), flipped with probability `noise`, for two fair and independent bits."""
    table = np.zeros((2, 2, 2))
    for a, b in itertools.product((0, 1), repeat=2):
        table[target(a, b), a, b] += (1 - noise) / 4
        table[1 - target(a, b), a, b] += noise / 4
    return table


def copies(noise: float = 0.0) -> np.ndarray:
    """A and B are the same bit, and so is Y but for noise."""
    table = np.zeros((2, 2, 2))
    for y, s in itertools.product((0, 1), repeat=2):
        table[y, s, s] = (1 - noise if y == s else noise) / 2
    return table


def together(*tables: np.ndarray) -> np.ndarray:
    """Independent systems side by side as one."""
    joint = np.ones((1, 1, 1))
    for table in tables:
        joint = np.kron(joint, table)
    return joint


def first(a: int, b: int) -> int:
    return a


def second(a: int, b: int) -> int:
    return b


def parts(found: Information) -> tuple[float, ...]:
    return found.unique_a, found.unique_b, found.redundant, found.synergy


def bits(table: np.ndarray) -> float:
    """I(Y;Z) of a table of probabilities."""
    independent = table.sum(1, keepdims=True) * table.sum(0)
    return float((table[table > 0] * np.log2(table[table > 0] / independent[table > 0])).sum())


def entropy(p: float) -> float:
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


AND = (0, 0, entropy(0.25) - 0.5, 0.5)
NOISY = 1 - entropy(0.1)


@pytest.mark.parametrize(
    ("table", "truth"),
    [
        (gate(lambda a, b: a & b), AND),
        (gate(lambda a, b: a ^ b), (0, 0, 0, 1)),
        (gate(first), (1, 0, 0, 0)),
        (together(gate(first), gate(second)), (1, 1, 0, 0)),
        (copies(), (0, 0, 1, 0)),
        (together(gate(first, 0.1), gate(second, 0.1), copies(0.1), gate(lambda a, b: a ^ b, 0.1)), (NOISY,) * 4),
        (together(gate(lambda a, b: a & b), copies(0.1), gate(first, 0.1)), np.add(AND, (NOISY, 0, NOISY, 0))),
        (np.ones((3, 2, 4)), (0, 0, 0, 0)),
    ],
    ids=["and", "xor", "one source", "each a bit", "copies", "one of each with noise", "and beside others", "nothing"],
)
def test_gates(table, truth):
    assert parts(decompose_information(table)) == pytest.approx(truth, abs=1e-5)


def test_the_and_gate_as_it_is_published():
    assert decompose_information(gate(lambda a, b: a & b)).redundant == pytest.approx(0.311, abs=5e-4)


def solved(joint: np.ndarray) -> float:
    """min I_Q(Y; A,B) by sequential quadratic programming over all entries of Q."""
    with_a, with_b = joint.sum(2), joint.sum(1)

    def loss(flat: np.ndarray) -> float:
        q = np.maximum(flat.reshape(joint.shape), 1e-15)
        return float((q * np.log2(q / (q.sum(0) * q.sum((1, 2), keepdims=True)))).sum())

    def slope(flat: np.ndarray) -> np.ndarray:
        q = np.maximum(flat.reshape(joint.shape), 1e-15)
        return np.log2(q / (q.sum(0) * joint.sum((1, 2), keepdims=True))).ravel()

    def off(flat: np.ndarray) -> np.ndarray:
        q = flat.reshape(joint.shape)
        # One column of the second marginal follows from the rest.
        return np.concatenate([(q.sum(2) - with_a).ravel(), (q.sum(1) - with_b)[:, 1:].ravel()])

    found = scipy.optimize.minimize(
        loss,
        joint.ravel(),
        jac=slope,
        method="SLSQP",
        bounds=[(0, 1)] * joint.size,
        constraints={"type": "eq", "fun": off},
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert found.success
    assert np.abs(off(found.x)).max() < 1e-9
    return found.fun


@pytest.mark.parametrize("seed", range(2))
def test_a_random_table_against_another_solver(seed):
    joint = np.random.default_rng(seed).dirichlet(np.full(27, 0.5)).reshape(3, 3, 3)
    about_a, about_b = bits(joint.sum(2)), bits(joint.sum(1))
    union = solved(joint)
    found = decompose_information(joint)
    truth = (union - about_b, union - about_a, about_a + about_b - union, bits(joint.reshape(3, 9)) - union)
    assert parts(found) == pytest.approx(truth, abs=1e-5)


def test_parts_add_up_whatever_the_table():
    rng = np.random.default_rng(0)
    for shape in ((2, 5, 3), (6, 4, 4), (4, 1, 3)):
        # Most entries are zero, one class never occurs, and counts will do.
        counts = rng.integers(1, 30, shape) * (rng.random(shape) < 0.3)
        counts[0] = 0
        joint = counts / counts.sum()
        found, swapped = decompose_information(counts.astype(np.float64)), decompose_information(joint.swapaxes(1, 2))
        assert min(parts(found)) >= 0
        seen = joint[1:]
        assert found.total == pytest.approx(bits(seen.reshape(len(seen), -1)), abs=1e-9)
        assert found.unique_a + found.redundant == pytest.approx(bits(seen.sum(2)), abs=1e-9)
        assert found.unique_b + found.redundant == pytest.approx(bits(seen.sum(1)), abs=1e-9)
        assert found.redundant == pytest.approx(swapped.redundant, abs=2e-6)


@pytest.mark.parametrize("table", [np.zeros((2, 2, 2)), -np.ones((2, 2, 2)), np.full((2, 2, 2), np.nan)])
def test_what_is_no_table(table):
    with pytest.raises(ValueError, match="non-negative"):
        decompose_information(table)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def predictions(kinds: str, noise: float, *, examples: int = 2048, smoothing: float = 0.0, seed: int = 0):
    """Posteriors given A, given B, given both, and classes, where bit by bit of the class a source may know it.

    `kinds` says of every bit who does: a, b, either (r), or only both (s). Posteriors are of a temperature of 1.5, with
    noise of 0.1 on each logit.
    """
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 2, (examples, len(kinds)))
    classes = np.array(list(itertools.product((0, 1), repeat=len(kinds))))
    right = np.where(classes == known[:, None], 1 - noise, noise)
    truth = (known ^ (rng.random(known.shape) < noise)) @ (2 ** np.arange(len(kinds))[::-1])
    posteriors = []
    for source in ("ar", "br", "abrs"):
        exact = np.where([kind in source for kind in kinds], right, 0.5).prod(-1)
        exact = (1 - smoothing) * exact + smoothing / len(classes)
        logits = np.log(np.maximum(exact, 1e-6)) + 0.1 * rng.normal(size=exact.shape)
        posteriors.append(softmax(logits / 1.5))
    return (*posteriors, truth)


@pytest.mark.parametrize(
    ("kinds", "noise", "smoothing"),
    [("ssss", 0, 0), ("rr", 0, 0), ("abrs", 0.1, 0), ("abrs", 0, 0.1), ("arrs", 0.05, 0), ("rbbs", 0.2, 0)],
)
def test_estimates_are_near_what_made_the_posteriors(kinds, noise, smoothing):
    capacity = 1 - entropy(noise) if noise else 1
    found = estimate_information(*predictions(kinds, noise, smoothing=smoothing))
    assert parts(found) == pytest.approx([kinds.count(kind) * capacity for kind in "abrs"], abs=0.1)


def test_estimates_come_out_the_same_and_swap_with_the_sources():
    a, b, ab, truth = predictions("arr", 0.1, examples=500)
    found, swapped = estimate_information(a, b, ab, truth), estimate_information(b, a, ab, truth)
    assert found == estimate_information(a, b, ab, truth)
    assert parts(swapped) == pytest.approx((found.unique_b, found.unique_a, found.redundant, found.synergy), abs=1e-5)
    assert found.unique_a + found.redundant <= np.log2(8)


def test_posteriors_that_say_nothing_and_ones_that_are_sure():
    truth = np.arange(400) // 2 % 4
    nothing, sure = np.full((400, 5), 0.2, np.float32), np.eye(5, dtype=np.float32)[truth]
    assert parts(estimate_information(nothing, nothing, nothing, truth)) == pytest.approx((0, 0, 0, 0), abs=1e-9)
    assert parts(estimate_information(sure, nothing, sure, truth)) == pytest.approx((2, 0, 0, 0), abs=0.05)
    # A joint model that failed is not held against what each source says by itself.
    assert parts(estimate_information(sure, sure, nothing, truth)) == pytest.approx((0, 0, 2, 0), abs=0.05)
    # One example in 400 that is surely wrong costs what it is worth, not all.
    wrong = sure.copy()
    wrong[0] = np.eye(5)[3]
    assert estimate_information(wrong, wrong, wrong, truth).redundant == pytest.approx(2, abs=0.1)
