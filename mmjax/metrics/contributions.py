"""Shapley values of modalities."""

import itertools
import math
from collections.abc import Mapping
from typing import Any


def shapley(value: Mapping[frozenset[str], Any]) -> dict[str, Any]:
    """The Shapley value of every modality (Shapley 1953, "A value for n-person games").

        phi(i) = sum over S without i of |S|! (M - |S| - 1)! / M! * (value(S + i) - value(S))

    is the mean gain of adding i in all orders of the M modalities; they add up to value(all) - value(none). `value`
    holds the metric for all 2^M subsets, the empty one included, as numbers or as arrays (one entry per example, say).

    Raises:
        ValueError: the metric of a subset is missing.
    """
    names = sorted(frozenset().union(*value))
    count = len(names)
    subsets = [frozenset(chosen) for size in range(count + 1) for chosen in itertools.combinations(names, size)]
    for subset in subsets:
        if subset not in value:
            raise ValueError(f"there is no value for the subset {sorted(subset)} of {names}")
    weights = [math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) for size in range(count)]
    return {
        name: sum(weights[len(rest)] * (value[rest | {name}] - value[rest]) for rest in subsets if name not in rest)
        for name in names
    }
