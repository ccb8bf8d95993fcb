"""The report of an ablation: which choice is best, by how much, at what cost, and what it makes of its modalities."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import local_path, write_atomic
from mmjax.formatting import duration
from mmjax.reports.ablation_plots import (
    COLOURS,
    GREY,
    NARROW,
    SMALL,
    WIDE,
    Line,
    Number,
    Point,
    bars_svg,
    curves_svg,
    growth_svg,
    scatter_svg,
    span,
    style,
)
from mmjax.reports.page import render
from mmjax.reports.plots import DASHES

SIGNIFICANT = 0.05
UNKNOWN = "–"
DIFFERENCE = "difference to the baseline"
PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
# What a choice costs: how its column is called, how an axis is, and its unit.
COSTS = {
    "parameters": ("parameters", "parameters", ""),
    "flops": ("step FLOPs", "FLOPs of a step", "FLOP"),
    "step_seconds": ("step time", "time of a step", "s"),
    "peak_bytes": ("peak memory", "peak memory", "B"),
}
# What is drawn: the first two of these that were not made equal. The first is that of the Pareto front.
DRAWN = ("flops", "step_seconds", "parameters")
# What was made equal: as a cost, and in words.
MATCHES = {"flops": ("flops", "FLOPs"), "params": ("parameters", "parameters")}
PARTS = ("unique_a", "unique_b", "redundant", "synergy")

Table = Mapping[str, Any]


def write_ablation_report(folder: str | os.PathLike[str], table: Table) -> Path:
    """Writes `folder`/report.html, all at once, and returns its path; `table` is what table.json holds.

    What is None in it is shown as unknown, and a section that has nothing to show is left out. The same table makes the
    same page. Raises UserError where the page cannot be written.
    """
    page = render(
        "ablation_report.html",
        table=table,
        ranked=ranked(table),
        headline=headline(table),
        facts=_facts(table),
        columns=_columns(table),
        notes={name: _notes(table, name, entry) for name, entry in ranked(table).items()},
        tones=_tones(table),
        difference=DIFFERENCE,
        costs=_costs(table),
        curves=_curves(table),
        robustness=_robustness(table),
        contributions=_contributions(table),
        interactions=_interactions(table),
        verdicts={name: entry["verdict"] for name, entry in ranked(table).items() if entry.get("verdict")},
        growth=_growth(table),
    )
    return write_atomic(local_path(folder) / "report.html", page)


def write_ablation_markdown(folder: str | os.PathLike[str], table: Table) -> Path:
    """Writes `folder`/table.md: the headline, the comparison and what failed, for a README or a pull request."""
    names, columns = ranked(table), _columns(table)
    first, second = headline(table, _escaped)
    title = f"# Ablation of `{', '.join(table['over'])}` in `{table['experiment']}`"
    lines = [title, "", f"**{first}** {second}".strip()]
    if names:
        lines += ["", _line("choice", *columns), _line("---", *("---:" for _ in columns))]
    for index, (name, entry) in enumerate(names.items()):
        notes = _notes(table, name, entry)
        label = _escaped(name) + (f" ({', '.join(notes)})" if notes else "")
        lines.append(_line(label, *(cells[index] for cells in columns.values())))
    lines += ["", "Failed:", ""] if table["failed"] else []
    for cell in table["failed"]:
        lines.append(f"- {_escaped(cell['choice'])}, seed {cell['seed']}: {_escaped(cell['reason'])}")
    return write_atomic(local_path(folder) / "table.md", "\n".join(lines) + "\n")


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Text in which Markdown finds no mark-up, on one line."""
    return re.sub(r"([\\`*\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def ranked(table: Table) -> dict[str, Mapping[str, Any]]:
    """Choices with their summaries, the best first; those of which no metric is known last."""
    sign = -1 if table["higher_is_better"] else 1

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[Number, str]:
        mean = item[1]["mean"]
        return (math.inf if mean is None else sign * mean), item[0]

    return dict(sorted(table["summary"].items(), key=place))


def headline(table: Table, named: Callable[[str], str] = str) -> tuple[str, str]:
    """Who won, with what, and from whom it can be told apart. `named` is applied to what others have named."""
    winner = table["winner"]
    if winner is None:
        return "No choice can be called the best.", ""
    best = winner["choice"]
    names = ranked(table)
    seeds = names[best]["seeds"]
    ahead = "is best" if winner["better_than"] else "is ahead"
    first = f"{named(best)} {ahead}: {named(table['metric'])} {_interval(winner, _decimals(table))}"
    first += f" over {seeds} seed{'' if seeds == 1 else 's'}." if seeds else "."
    worse = [named(name) for name in names if name in winner["better_than"]]
    alike = [named(name) for name in names if name != best and name not in winner["better_than"]]
    if worse and alike:
        second = f"It is significantly better than {_listed(worse)}; it cannot be told apart from {_listed(alike)}."
    elif worse:
        second = f"It is significantly better than {'all others: ' if len(worse) > 1 else ''}{_listed(worse)}."
    elif alike:
        second = f"It cannot be told apart from {'any of the others: ' if len(alike) > 1 else ''}{_listed(alike)}."
    else:
        second = "" if not table["failed"] else "It is the only one that came to its end."
    return first, second


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _decimals(table: Table) -> int:
    """How many decimals the metric is shown with: three of an accuracy, enough of anything else."""
    largest = max((abs(entry["mean"]) for entry in table["summary"].values() if entry["mean"]), default=1.0)
    size = math.floor(math.log10(largest))
    return max(0, 3 - size if size >= 0 else 2 - size)


def _fixed(value: Number | None, decimals: int, sign: str = "") -> str:
    return UNKNOWN if value is None else f"{value:{sign}.{decimals}f}".replace("-", "−")


def _interval(entry: Mapping[str, Any] | None, decimals: int, sign: str = "") -> str:
    """ "mean [low, high]", or as much of it as is known."""
    if entry is None or entry["mean"] is None:
        return UNKNOWN
    mean, low, high = (_fixed(entry[key], decimals, sign) for key in ("mean", "low", "high"))
    return mean if entry["low"] is None or entry["high"] is None else f"{mean} [{low}, {high}]"


def _probability(entry: Mapping[str, Any] | None) -> str:
    value = None if entry is None else entry["p_holm"]
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _scaled(values: Sequence[Number | None]) -> tuple[str, list[str]]:
    """A prefix under which no value is below 1, and the values under it, three digits of the smallest."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    power = min(max(math.floor(math.log10(smallest) / 3), min(PREFIXES)), max(PREFIXES))
    decimals = max(0, 2 - math.floor(math.log10(smallest / 1000.0**power)))
    shown = [UNKNOWN if value is None else f"{value / 1000.0**power:,.{decimals}f}" for value in values]
    return PREFIXES[power], shown


def _columns(table: Table) -> dict[str, list[str]]:
    """The comparison by column, the rows as they rank; columns of which nothing is known are left out."""
    entries = list(ranked(table).values())
    decimals = _decimals(table)
    columns = {
        table["metric"]: [_interval(entry, decimals) for entry in entries],
        DIFFERENCE: [_interval(entry["difference"], decimals, "+") for entry in entries],
        "p (Holm)": [_probability(entry["difference"]) for entry in entries],
    }
    for key, (title, _, unit) in COSTS.items():
        prefix, cells = _scaled([entry[key] for entry in entries])
        # "step FLOPs (GFLOP)" would say it twice.
        unit = prefix + unit.replace("FLOP", "")
        columns[f"{title} ({unit})" if unit else title] = cells
    columns["width"] = [UNKNOWN if entry["width"] is None else str(entry["width"]) for entry in entries]
    if table["match"] in MATCHES:
        columns[f"{MATCHES[table['match']][1]} / baseline"] = [_fixed(entry["matched"], 2) for entry in entries]
    columns["Pareto"] = ["✓" if entry["pareto"] else "" for entry in entries]
    return {title: cells for title, cells in columns.items() if set(cells) - {"", UNKNOWN}}


def _tones(table: Table) -> dict[str, str]:
    """Which choices are significantly "better" or "worse" than the baseline."""
    tones = {}
    for name, entry in table["summary"].items():
        difference = entry["difference"] or {"mean": None, "p_holm": None}
        if None not in (difference["mean"], difference["p_holm"]) and difference["p_holm"] < SIGNIFICANT:
            tones[name] = "better" if (difference["mean"] > 0) == table["higher_is_better"] else "worse"
    return tones


def _notes(table: Table, name: str, entry: Mapping[str, Any]) -> list[str]:
    """What has to be known of a choice beside its name."""
    seeds = len(table["seeds"])
    short = f"{entry['seeds']} of {seeds} seeds" if entry["seeds"] is not None and entry["seeds"] < seeds else None
    return [note for note in ("baseline" if name == table["baseline"] else None, short) if note]


def _facts(table: Table) -> dict[str, str]:
    done, failed = len(table["cells"]), len(table["failed"])
    facts = {
        "choices": str(len({cell["choice"] for cell in (*table["cells"], *table["failed"])})),
        "seeds": str(len(table["seeds"])),
        "runs": f"{done} of {done + failed}" if failed else str(done),
        "baseline": table["baseline"],
        "made equal": MATCHES.get(table["match"], ("", ""))[1],
        "time, summed over runs": duration(table["seconds"]) if table["seconds"] else "",
    }
    return {label: value for label, value in facts.items() if value}


def _costs(table: Table) -> list[str]:
    """Metric by cost: two plots, of costs that were not made equal and are known."""
    plots = []
    for key in DRAWN:
        points = [
            Point(
                *(name, entry[key], entry["mean"]),
                low=entry["mean"] if entry["low"] is None else entry["low"],
                high=entry["mean"] if entry["high"] is None else entry["high"],
                marked=name == table["baseline"],
            )
            for name, entry in ranked(table).items()
            if entry[key] and entry["mean"] is not None
        ]
        if key != MATCHES.get(table["match"], ("", ""))[0] and points:
            _, title, unit = COSTS[key]
            texts = {"xlabel": title, "unit": unit, "ylabel": table["metric"]}
            plots.append(scatter_svg(points, f"cost{key}", **texts, higher_is_better=table["higher_is_better"]))
    return plots[:2]


def _curves(table: Table) -> dict[str, Any] | None:
    """All curves in one plot if there are as many colours, otherwise each in a plot of its own beside the baseline."""
    lines = []
    for name in ranked(table):
        values: dict[Number, list[Number]] = {}
        for cell in table["cells"]:
            for step, value in (cell["curve"] or ()) if cell["choice"] == name else ():
                if value is not None:
                    values.setdefault(step, []).append(value)
        if values:
            steps = sorted(values)
            mean, low, high = np.array([(np.mean(v), min(v), max(v)) for v in (values[step] for step in steps)]).T
            note = _fixed(mean[-1], _decimals(table))
            lines.append(Line(name, np.array(steps, np.float64), mean, low, high, note=note))
    if not lines:
        return None
    limits = span(lines)
    metric = table["metric"].partition("/")[2]  # of another split: the test split is not looked at while training
    if len(lines) <= COLOURS:
        lines = [replace(line, hue=index) for index, line in enumerate(lines)]
        return {
            "metric": metric,
            "all": lines,
            "svg": curves_svg(lines, "curves", ylabel=metric, limits=limits, width=WIDE),
        }
    others = [replace(line, hue=GREY, dash=DASHES["validation"]) for line in lines if line.name == table["baseline"]]
    plots = []
    for index, line in enumerate(lines):
        beside = [other for other in others if other.name != line.name]
        svg = curves_svg([*beside, line], f"curve{index}", ylabel="", limits=limits, width=SMALL)
        plots.append((line, svg))
    return {"metric": metric, "each": plots, "beside": others}


def _robustness(table: Table) -> dict[str, Any] | None:
    """The metric with one modality hidden or in noise: as shown, its change, and how dark the cell is (0 to 1)."""
    names, sign, decimals = ranked(table), (1 if table["higher_is_better"] else -1), _decimals(table)
    columns = {
        (kind, modality): f"{words} {modality}"
        for kind, words in (("missing", "without"), ("noise", "noise in"))
        for entry in names.values()
        for modality in entry.get(kind) or ()
    }
    found = []
    for name, entry in names.items():
        full = entry["mean"] if entry.get("probed") is None else entry["probed"]
        values = [(entry.get(kind) or {}).get(modality) for kind, modality in columns]
        changes = [None if value is None or full is None else value - full for value in values]
        found.append((name, full, entry.get("none"), values, changes))
    worst = max((-sign * change for *_, changes in found for change in changes if change is not None), default=0.0)
    rows = [
        {
            "name": name,
            "full": _fixed(full, decimals),
            "none": _fixed(none, decimals),
            "cells": [
                (
                    _fixed(value, decimals),
                    _fixed(change, decimals, "+"),
                    max(0.0, -sign * (change or 0.0)) / (worst or 1),
                )
                for value, change in zip(values, changes, strict=True)
            ],
        }
        for name, full, none, values, changes in found
        if any(value is not None for value in values)
    ]
    return {"columns": list(columns.values()), "rows": rows} if rows else None


def _contributions(table: Table) -> dict[str, Any] | None:
    """Shapley values by choice, as gains: what a modality adds lies to the right, also where lower is better."""
    given = {name: entry.get("shapley") or {} for name, entry in ranked(table).items()}
    known = {name: values for name, values in given.items() if set(values.values()) - {None}}
    if not known:
        return None
    modalities = list(dict.fromkeys(modality for values in known.values() for modality in values))
    sign = 1 if table["higher_is_better"] else -1
    bars = [
        (name, [None if values.get(modality) is None else sign * values[modality] for modality in modalities])
        for name, values in known.items()
    ]
    gain = "gain in" if sign > 0 else "reduction of"
    xlabel = f"{gain} {table['metric']} over no modality"
    return {"parts": modalities, "svg": bars_svg(bars, "shapley", xlabel=xlabel, width=WIDE)}


def _interactions(table: Table) -> list[dict[str, Any]]:
    """For every pair of modalities, what each choice found of the information they hold; above it, what there is."""
    truth, ranks = table["truth"], ranked(table).items()
    found = [
        (name, item) for name, entry in ranks for item in entry.get("information") or () if item["total"] is not None
    ]
    pairs = dict.fromkeys((item["a"], item["b"]) for _, item in found)
    plots = []
    for index, (a, b) in enumerate(pairs):
        bars = [("ground truth", [truth[part] for part in PARTS])] if truth else []
        bars += [(name, [item[part] for part in PARTS]) for name, item in found if (item["a"], item["b"]) == (a, b)]
        width = WIDE if len(pairs) == 1 else NARROW
        svg = bars_svg(bars, f"pair{index}", xlabel="bits about the label", width=width, apart=1 if truth else 0)
        parts = [f"only {a}", f"only {b}", "either alone (redundant)", "only both together (synergy)"]
        plots.append({"title": f"{a} and {b}", "parts": parts, "svg": svg})
    return plots


def _growth(table: Table) -> dict[str, Any] | None:
    """What a forward pass costs by the number of tokens; the legend is in the order in which the lines of FLOPs end."""
    growth = table["growth"]
    if growth is None:
        return None
    names = sorted(growth["flops"], key=lambda name: (-(growth["flops"][name][-1] or 0.0), name))
    plots: list[str] = []
    legend: dict[str, Line] = {}
    for key, title, unit in (("flops", "FLOPs of a forward pass", "FLOP"), ("seconds", "time of a forward pass", "s")):
        lines = []
        for index, name in enumerate(names):
            values = (growth[key] or {}).get(name) or ()
            # What is 0, such as the FLOPs of a fusion without matrix products, has no logarithm.
            known = [(size, value) for size, value in zip(growth["tokens"], values, strict=False) if value]
            hue, dash = style(index)
            exponent = growth["exponents"].get(name)
            note = "" if exponent is None else f"exponent {exponent:.2f}"
            if known:
                sizes, costs = np.array(known, np.float64).T
                lines.append(Line(name, sizes, costs, hue=hue, dash=dash, note=note))
        if lines:
            plots.append(growth_svg(lines, f"growth{key}", ylabel=title, unit=unit))
        legend |= {line.name: line for line in lines}
    return {"plots": plots, "legend": [legend[name] for name in names if name in legend]} if plots else None
