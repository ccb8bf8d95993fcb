"""Shapley values against their definition: the mean gain over all orders."""

import itertools

import numpy as np
import pytest

from mmjax.metrics.contributions import shapley

NAMES = ("image", "sentence", "speech", "wave")


def subsets(names: tuple[str, ...]) -> list[frozenset[str]]:
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)]


def slow_shapley(value: dict[frozenset[str], float], names: tuple[str, ...]) -> dict[str, float]:
    orders = list(itertools.permutations(names))
    gains = dict.fromkeys(names, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            gains[name] += value[frozenset(order[: place + 1])] - value[frozenset(order[:place])]
    return {name: gain / len(orders) for name, gain in gains.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_values_are_the_mean_gains_over_all_orders(count):
    rng = np.random.default_rng(count)
    names = NAMES[:count]
    value = {subset: float(rng.normal()) for subset in subsets(names)}
    found = shapley(value)
    assert found == pytest.approx(slow_shapley(value, names), abs=1e-12)
    assert sum(found.values()) == pytest.approx(value[frozenset(names)] - value[frozenset()], abs=1e-12)


def test_equals_get_the_same_and_who_adds_nothing_gets_nothing():
    worth = {"image": 1.0, "sentence": 1.0, "speech": 0.0}
    value = {subset: sum((worth[name] for name in subset), 0.0) ** 2 for subset in subsets(NAMES[:3])}
    found = shapley(value)
    assert found["image"] == pytest.approx(found["sentence"], abs=1e-12)
    assert found["image"] == pytest.approx(2)
    assert found["speech"] == pytest.approx(0, abs=1e-12)


def test_every_subset_is_needed():
    value = dict.fromkeys(subsets(NAMES[:3]), 0.0)
    del value[frozenset({"image", "speech"})]
    with pytest.raises(ValueError, match=r"\['image', 'speech'\]"):
        shapley(value)
    with pytest.raises(ValueError, match=r"\[\]"):
        shapley({frozenset({"image"}): 1.0})
    assert shapley({frozenset(): 0.5}) == {}
