"""What an ablation shows, in numbers and sentences: ranks, verdict, chance level, and cautions."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.metrics.statistics import detectable_difference
from mmjax.reports.ablation_plots import Number
from mmjax.reports.page import Cell

UNKNOWN = "–"
PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
# Fewer seeds say little about how much seeds differ.
FEW_SEEDS = 5
# Runs in whose last fifth the metric changed by more than this share of its whole change had not settled.
SETTLED = 0.05

Table = Mapping[str, Any]


def ranked(table: Table) -> dict[str, Mapping[str, Any]]:
    """Choices with their summaries, the best first; those of which no metric is known last."""
    sign = -1 if table["higher_is_better"] else 1

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[Number, str]:
        mean = item[1]["mean"]
        return (math.inf if mean is None else sign * mean), item[0]

    return dict(sorted(table["summary"].items(), key=place))


def headline(table: Table, named: Callable[[str], str] = str) -> tuple[str, str]:
    """Who won, with what, and from which others it is distinguishable.

    `named` is applied to the names of choices and of the metric.
    """
    winner = table["winner"]
    if winner is None:
        return "No choice can be called the best.", ""
    best = winner["choice"]
    names = ranked(table)
    seeds = names[best]["seeds"]
    reached = " ".join(filter(None, interval_cell(winner, decimals_of(table))[:2]))
    ahead = "is best" if winner["better_than"] else "is ahead"
    first = f"{named(best)} {ahead}: {named(table['metric'])} {reached}"
    first += f" over {seeds} seed{'' if seeds == 1 else 's'}." if seeds else "."
    worse = [named(name) for name in names if name in winner["better_than"]]
    alike = [named(name) for name in names if name != best and name not in winner["better_than"]]
    if worse and alike:
        second = f"It is significantly better than {listed(worse)}; it is not distinguishable from {listed(alike)}."
    elif worse:
        second = f"It is significantly better than {'all others: ' if len(worse) > 1 else ''}{listed(worse)}."
    elif alike:
        second = f"It is not distinguishable from {'any of the others: ' if len(alike) > 1 else ''}{listed(alike)}."
    else:
        second = "" if not table["failed"] else "It is the only one that finished."
    return first, second


def chance(table: Table) -> str:
    """The chance level, and whether the best choice is distinguishable from it; "" if not known."""
    level, winner = table.get("chance"), table["winner"]
    if level is None:
        return ""
    unclear = winner is not None and winner["low"] is not None and winner["low"] <= level
    sure = "; the best choice is not distinguishable from that" if unclear else ""
    return f"Always predicting the commonest class reaches {fixed(level, decimals_of(table))} (chance level){sure}."


def cautions(table: Table) -> list[str]:
    """What few seeds or steps leave open, in sentences."""
    found = []
    decimals, seeds = decimals_of(table), len(table["seeds"])
    least = detectable_difference(differences(table))
    if seeds < FEW_SEEDS and math.isfinite(least):
        least_shown = fixed(least, decimals)
        found.append(f"{seeds} seeds: differences under {least_shown} cannot be detected at the mean spread of seeds.")
    elif seeds == 1:
        found.append("1 seed: nothing is known of how much seeds differ.")
    changes = [
        (curve[-1][1] - curve[0][1], curve[-1][1] - curve[math.floor(0.8 * (len(curve) - 1))][1], curve[-1][0])
        for cell in table["cells"]
        if len(curve := [point for point in cell["curve"] or () if None not in point]) > 1
    ]
    if changes:
        sign = 1 if table["higher_is_better"] else -1
        whole, last, steps = (float(np.mean(values)) for values in zip(*changes, strict=True))
        if sign * last > SETTLED * abs(whole) > 0:
            found.append(
                f"The runs were still improving after their {steps:,.0f} steps: longer ones may rank otherwise."
            )
    return found


def differences(table: Table) -> np.ndarray:
    """The metric's difference to the baseline, choice by choice, of every seed that all of them finished."""
    values: dict[str, dict[int, Number]] = {}
    for cell in table["cells"]:
        if (value := cell["metrics"].get(table["metric"])) is not None:
            values.setdefault(cell["choice"], {})[cell["seed"]] = value
    base = values.pop(table["baseline"], {})
    seeds = [seed for seed in base if all(seed in own for own in values.values())]
    rows = [[own[seed] - base[seed] for seed in seeds] for own in values.values()]
    return np.array(rows, np.float64).reshape(len(rows), len(seeds))


def listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def decimals_of(table: Table) -> int:
    """How many decimals the metric is shown with: three of an accuracy, enough of anything else."""
    largest = max((abs(entry["mean"]) for entry in table["summary"].values() if entry["mean"]), default=1.0)
    size = math.floor(math.log10(largest))
    return max(0, 3 - size if size >= 0 else 2 - size)


def fixed(value: Number | None, decimals: int, sign: str = "") -> str:
    return UNKNOWN if value is None else f"{value:{sign}.{decimals}f}".replace("-", "−")


def interval_cell(entry: Mapping[str, Any] | None, decimals: int, sign: str = "") -> Cell:
    """The mean with "[low, high]", or as much of it as is known."""
    if entry is None or entry["mean"] is None:
        return Cell(UNKNOWN)
    mean, low, high = (fixed(entry[key], decimals, sign) for key in ("mean", "low", "high"))
    return Cell(mean, "" if entry["low"] is None or entry["high"] is None else f"[{low}, {high}]")


def probability(entry: Mapping[str, Any] | None) -> str:
    value = None if entry is None else entry["p_holm"]
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def scaled(values: Sequence[Number | None]) -> tuple[str, list[str]]:
    """A prefix under which no value is below 1, and the values under it, three digits of the smallest."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    power = min(max(math.floor(math.log10(smallest) / 3), min(PREFIXES)), max(PREFIXES))
    decimals = max(0, 2 - math.floor(math.log10(smallest / 1000.0**power)))
    shown = [UNKNOWN if value is None else f"{value / 1000.0**power:,.{decimals}f}" for value in values]
    return PREFIXES[power], shown
