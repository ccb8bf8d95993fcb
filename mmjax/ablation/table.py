"""The result of an ablation: what every choice reached, at what cost, how surely, and why."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmjax.ablation.cell import Cell, judged_output, read_answers
from mmjax.ablation.scaling import cost_scaling
from mmjax.config.experiment_file import fingerprint
from mmjax.errors import UserError
from mmjax.files import to_path, write_atomic
from mmjax.metrics.contributions import shapley
from mmjax.metrics.statistics import LESS_IS_BETTER, bootstrap_interval, holm, paired_difference, pareto_front
from mmjax.reports.ablation import write_ablation_markdown, write_ablation_report
from mmjax.training.metrics import read_history, read_summary

FUSION = "model.fusion"
# The width at which the growth of cost is looked at.
GROWTH_WIDTH = 64
# A fusion that finds less than this share of the information that is there in a form has failed at that form.
FOUND = 0.5


def write_table(
    folder: Path, cells: Sequence[Cell], seeds: Sequence[int], baseline: str, metric: str | None, match: str
) -> Path:
    """Write table.json, table.md and report.html of a grid that is done; returns the first one's path.

    Raises UserError where no choice came to its end, or there is no such metric.
    """
    for cell in cells:
        check_metric(cell, seeds, metric)
    metric = metric or _default_metric(cells[0])
    table = Table(cells, seeds, baseline, metric, match)
    result = table.build()
    path = write_atomic(folder / "table.json", json.dumps(_finite(result), indent=2, allow_nan=False) + "\n")
    write_ablation_markdown(folder, _finite(result))
    write_ablation_report(folder, _finite(result))
    return path


def check_metric(cell: Cell, seeds: Sequence[int], metric: str | None) -> None:
    """Raises UserError where a choice that was trained knows no such figure."""
    for run in cell.runs(seeds):
        path = to_path(run.run_dir) / "summary.json"
        if metric is not None and path.exists():
            known = read_summary(run.run_dir)["metrics"]
            if metric not in known:
                raise UserError(f"metric={metric} is not among the figures: {', '.join(known)}")


def _default_metric(cell: Cell) -> str:
    found = judged_output(cell.experiment)
    split = cell.experiment.data.source.splits[-1]
    return f"{split}/{found[0]}/accuracy" if found else f"{split}/loss"


@dataclasses.dataclass
class Table:
    """What is put together."""

    cells: Sequence[Cell]
    seeds: Sequence[int]
    baseline: str
    metric: str
    match: str

    def build(self) -> dict[str, Any]:
        """Everything the files hold, as JSON can hold it."""
        more = not self.metric.endswith(LESS_IS_BETTER)
        rows = {cell.choice: [self._row(cell, run) for run in self._ended(cell)] for cell in self.cells}
        rows = {choice: found for choice, found in rows.items() if found}
        failed = [
            {"choice": cell.choice, "seed": int(seed), "reason": reason}
            for cell in self.cells
            for seed, reason in cell.failures.items()
        ]
        if not rows:
            raise UserError(f"no choice came to its end, the first because: {failed[0]['reason']}")
        values = {choice: self._values(choice) for choice in rows}
        summary = {choice: self._summary(choice, rows, values) for choice in rows}
        self._compare(summary, values, 1.0 if more else -1.0)
        best = (max if more else min)(summary, key=lambda choice: summary[choice]["mean"])
        first = self.cells[0].experiment
        keys = list(self.cells[0].values)
        return {
            "experiment": first.name,
            "over": keys,
            "match": self.match,
            "metric": self.metric,
            "higher_is_better": more,
            "baseline": self.baseline,
            "chance": self._chance,
            "seeds": list(self.seeds),
            "fingerprint": fingerprint(first),
            "seconds": sum(row["seconds"] for found in rows.values() for row in found),
            "cells": [row for found in rows.values() for row in found],
            "failed": failed,
            "summary": summary,
            "truth": self._truth,
            "winner": self._winner(best, summary, values),
            "growth": self._growth() if keys == [FUSION] else None,
        }

    def _ended(self, cell: Cell) -> list[Any]:
        return [run for run in cell.runs(self.seeds) if str(run.seed) not in cell.failures]

    def _row(self, cell: Cell, run: Any) -> dict[str, Any]:
        """One seed of one choice."""
        folder = to_path(run.run_dir)
        summary, history = read_summary(folder), read_history(folder)
        split = self.metric.partition("/")[0]
        curve = self.metric.replace(f"{split}/", "validation/", 1)
        rates = [line for line in history if "train/steps_per_second" in line]
        # Examples a second are of all seeds that ran together.
        seconds = [run.train.batch_size / line["train/examples_per_second"] for line in rates]
        peaks = [line["train/peak_bytes"] for line in history if "train/peak_bytes" in line]
        return {
            "choice": cell.choice,
            "seed": run.seed,
            "metrics": summary["metrics"],
            "parameters": cell.cost.parameters,
            "flops": cell.cost.flops,
            "step_seconds": float(np.median(seconds)) if seconds else None,
            "peak_bytes": max(peaks, default=None),
            "width": run.model.width,
            "seconds": summary["seconds"],
            "run_dir": str(folder.relative_to(cell.folder.parent.parent)),
            "curve": [[line["step"], line[curve]] for line in history if curve in line],
        }

    @property
    def _truth(self) -> dict[str, float] | None:
        """The information that there is, where the source knows it."""
        truth = self.cells[0].experiment.data.source.information
        return None if truth is None else truth.as_json()

    @property
    def _chance(self) -> float | None:
        """The accuracy of always predicting the commonest class; None where the metric is another."""
        run = next(run for cell in self.cells for run in self._ended(cell))
        return read_answers(run.run_dir).get("chance") if self._by_answer else None

    def _values(self, choice: str) -> Float[np.ndarray, "S *E"]:
        """The metric of every seed, of every answer where it is the accuracy of those that were probed."""
        runs = self._ended(self._cell(choice))
        if self._by_answer:
            return np.stack([read_answers(run.run_dir)["correct"] for run in runs]).astype(np.float64)
        return np.array([read_summary(run.run_dir)["metrics"][self.metric] for run in runs])

    @property
    def _by_answer(self) -> bool:
        return self.metric == _default_metric(self.cells[0]) and judged_output(self.cells[0].experiment) is not None

    @functools.cached_property
    def _clusters(self) -> Int[np.ndarray, "A"] | None:
        """Which answers depend on each other; the same for every choice."""
        run = next(run for cell in self.cells for run in self._ended(cell))
        return read_answers(run.run_dir)["clusters"] if self._by_answer else None

    def _cell(self, choice: str) -> Cell:
        return next(cell for cell in self.cells if cell.choice == choice)

    def _summary(self, choice: str, rows: dict[str, list], values: dict[str, Any]) -> dict[str, Any]:
        """Figures of one choice, all but what takes others to say."""
        mine, interval = rows[choice], bootstrap_interval(values[choice], self._clusters)
        answers = [read_answers(run.run_dir) for run in self._ended(self._cell(choice))]
        reached = {"mean": interval.value, "low": interval.low, "high": interval.high, "seeds": len(mine)}
        cost = {key: mine[0][key] for key in ("parameters", "flops", "width")}
        for key in ("step_seconds", "peak_bytes"):
            known = [row[key] for row in mine if row[key] is not None]
            cost[key] = float(np.median(known)) if known else None
        kind = {"params": "parameters", "flops": "flops", "none": None}[self.match]
        own, reference = self._cell(choice).cost, self._cell(self.baseline).cost
        matched = getattr(own, kind) / getattr(reference, kind) if kind else None
        why = self._reasons(answers) if "subsets" in answers[0] else {}
        return {**reached, "difference": None, **cost, "matched": matched, "pareto": False, **why}

    def _reasons(self, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """Robustness, contributions and interaction, each the mean over seeds."""
        subsets = {name: _mean([one["subsets"][name] for one in answers]) for name in answers[0]["subsets"]}
        whole = max(subsets, key=lambda name: name.count("+") + bool(name))
        modalities = whole.split("+")
        game = {frozenset(name.split("+") if name else ()): value for name, value in subsets.items()}
        pairs = answers[0]["information"]
        parts = ("unique_a", "unique_b", "redundant", "synergy", "total")
        information = [
            {"a": pair["a"], "b": pair["b"]}
            | {part: _mean([one["information"][place][part] for one in answers]) for part in parts}
            for place, pair in enumerate(pairs)
        ]
        without = {name: "+".join(other for other in modalities if other != name) for name in modalities}
        found = {"information": information, "verdict": self._verdict(information)}
        if self.metric != _default_metric(self.cells[0]):
            return found  # what follows are accuracies, which would stand beside another figure
        return found | {
            "missing": {name: subsets[rest] for name, rest in without.items()},
            "noise": {name: _mean([one["noise"][name] for one in answers]) for name in modalities},
            "none": subsets[""],
            "probed": subsets[whole],
            "shapley": shapley(game),
        }

    def _verdict(self, information: list[dict[str, Any]]) -> str | None:
        """What a choice failed to find, where the truth is known."""
        truth = self._truth
        if truth is None or len(information) != 1:
            return None
        named = {
            "unique_a": "unique to a",
            "unique_b": "unique to b",
            "redundant": "redundant",
            "synergy": "synergistic",
        }
        lacks = [
            f"{information[0][part]:.2f} of {truth[part]:.2f} {name} bits"
            for part, name in named.items()
            if truth[part] and information[0][part] < FOUND * truth[part]
        ]
        return f"finds only {' and '.join(lacks)}" if lacks else "finds all that is there"

    def _compare(self, summary: dict[str, dict], values: dict[str, Any], sign: float) -> None:
        """Adds the differences from the baseline, corrected for their number, and who is on the Pareto front."""
        others = [choice for choice in summary if choice != self.baseline]
        if self.baseline in summary and others:
            found = [paired_difference(values[choice], values[self.baseline], self._clusters) for choice in others]
            corrected = holm(np.array([difference.p_value for difference in found]))
            for choice, difference, p_holm in zip(others, found, corrected, strict=True):
                interval = {"mean": difference.value, "low": difference.low, "high": difference.high}
                summary[choice]["difference"] = {**interval, "p": difference.p_value, "p_holm": float(p_holm)}
        cost = "step_seconds" if self.match == "flops" else "flops"
        costs = np.array([_number(row[cost]) for row in summary.values()])
        front = pareto_front(costs, sign * np.array([row["mean"] for row in summary.values()]))
        for row, ahead in zip(summary.values(), front, strict=True):
            row["pareto"] = bool(ahead)

    def _winner(self, best: str, summary: dict[str, dict], values: dict[str, Any]) -> dict[str, Any]:
        """The best choice and those that it beats significantly.

        It was chosen by the same figures, so each comparison is corrected as one of those of all pairs (Bonferroni).
        """
        pairs = len(summary) * (len(summary) - 1) / 2
        found = {
            choice: paired_difference(values[best], values[choice], self._clusters)
            for choice in summary
            if choice != best
        }
        beaten = [choice for choice, difference in found.items() if pairs * difference.p_value < 0.05]
        return {"choice": best, **{key: summary[best][key] for key in ("mean", "low", "high")}, "better_than": beaten}

    def _growth(self) -> dict[str, Any]:
        """How each fusion's cost grows with the tokens of its modalities."""
        fusions = {cell.choice: cell.experiment.model.fusion for cell in self.cells}
        encoders = self.cells[0].experiment.model.encoders
        modalities = tuple(name for name, encoder in sorted(encoders.items()) if encoder is not None)
        return cost_scaling(fusions, modalities, GROWTH_WIDTH, timed=True)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
