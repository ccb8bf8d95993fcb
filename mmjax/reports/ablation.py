"""The report of an ablation: the best choice, its lead, its cost, and its use of the modalities."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.files import to_path, write_atomic
from mmjax.formatting import duration
from mmjax.reports.ablation_plots import (
    COLOURS,
    GREY,
    NARROW,
    SMALL,
    WIDE,
    Number,
    Point,
    bars_svg,
    growth_svg,
    scatter_svg,
    span,
    style,
)
from mmjax.reports.ablation_summary import (
    UNKNOWN,
    Table,
    cautions,
    chance,
    decimals_of,
    fixed,
    headline,
    interval_cell,
    probability,
    ranked,
    scaled,
)
from mmjax.reports.page import Cell, Drawing, Key, Section, write_page
from mmjax.reports.page import Table as PageTable
from mmjax.reports.plots import DASHES, Line, lines_svg

SIGNIFICANT = 0.05
DIFFERENCE = "difference to the baseline"
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


def write_ablation_report(folder: str | Path, table: Table) -> Path:
    """Writes `folder`/report.html, all at once, and returns its path; `table` is what table.json holds.

    What is None in it is shown as unknown, and a section that has nothing to show is left out. The same table makes the
    same page. Raises UserError where the page cannot be written.
    """
    first, second = headline(table)
    doubts = cautions(table)
    sections = [
        Section(first, " ".join([second, chance(table)])),
        *([Section("Few seeds or steps", " ".join(doubts), warning=True)] if doubts else []),
        *_comparison(table),
        *_costs(table),
        *_curves(table),
        *_robustness(table),
        *_contributions(table),
        *_interactions(table),
        *_findings(table),
        *_growth(table),
        *_failed(table),
        _reading(table),
    ]
    title = f"Ablation of {', '.join(table['over'])} in {table['experiment']}"
    return write_page(to_path(folder) / "report.html", title, _facts(table), sections)


def write_ablation_markdown(folder: str | Path, table: Table) -> Path:
    """Writes `folder`/table.md: the headline, the comparison and what failed."""
    names, columns = ranked(table), _columns(table)
    first, second = headline(table, _escaped)
    title = f"# Ablation of `{', '.join(table['over'])}` in `{table['experiment']}`"
    lines = [title, "", " ".join(filter(None, [f"**{first}**", second, chance(table), *cautions(table)]))]
    if names:
        lines += ["", _line("choice", *columns), _line("---", *("---:" for _ in columns))]
    for index, (name, entry) in enumerate(names.items()):
        notes = _notes(table, name, entry)
        label = _escaped(name) + (f" ({', '.join(notes)})" if notes else "")
        lines.append(_line(label, *(" ".join(filter(None, cells[index][:2])) for cells in columns.values())))
    lines += ["", "Failed:", ""] if table["failed"] else []
    for cell in table["failed"]:
        lines.append(f"- {_escaped(cell['choice'])}, seed {cell['seed']}: {_escaped(cell['reason'])}")
    return write_atomic(to_path(folder) / "table.md", "\n".join(lines) + "\n")


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Text in which Markdown finds no mark-up, on one line."""
    return re.sub(r"([\\`*\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _columns(table: Table) -> dict[str, list[Cell]]:
    """The comparison by column, the rows as they rank; columns of which nothing is known are left out."""
    entries = list(ranked(table).values())
    decimals = decimals_of(table)
    columns = {
        table["metric"]: [interval_cell(entry, decimals) for entry in entries],
        DIFFERENCE: [interval_cell(entry["difference"], decimals, "+") for entry in entries],
        "p (Holm)": [Cell(probability(entry["difference"])) for entry in entries],
    }
    for key, (title, _, unit) in COSTS.items():
        prefix, cells = scaled([entry[key] for entry in entries])
        # "step FLOPs (GFLOP)" would say it twice.
        unit = prefix + unit.replace("FLOP", "")
        columns[f"{title} ({unit})" if unit else title] = list(map(Cell, cells))
    if table["match"] in MATCHES:
        columns["width"] = [Cell(UNKNOWN if entry["width"] is None else str(entry["width"])) for entry in entries]
        columns[f"{MATCHES[table['match']][1]} / baseline"] = [Cell(fixed(entry["matched"], 2)) for entry in entries]
    columns["Pareto"] = [Cell("✓" if entry["pareto"] else "") for entry in entries]
    return {title: cells for title, cells in columns.items() if {cell.text for cell in cells} - {"", UNKNOWN}}


def _comparison(table: Table) -> list[Section]:
    names, columns, tones = ranked(table), _columns(table), _tones(table)
    rows = []
    for index, (name, entry) in enumerate(names.items()):
        best = table["winner"] is not None and name == table["winner"]["choice"]
        cells = [
            column[index]._replace(tone=tones.get(name, "") if title == DIFFERENCE else "")
            for title, column in columns.items()
        ]
        rows.append([Cell(name, ", ".join(_notes(table, name, entry)), "best" if best else ""), *cells])
    return [Section("Comparison", tables=[PageTable(["choice", *columns], rows)])] if rows else []


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
        "fingerprint": table["fingerprint"] or "",
    }
    return facts


def _costs(table: Table) -> list[Section]:
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
            plots.append(scatter_svg(points, **texts, higher_is_better=table["higher_is_better"]))
    about = "The dashed line joins the choices that are better than all that cost no more. The diamond is the baseline."
    return [Section("Metric and cost", about, drawings=plots[:2])] if plots else []


def _curves(table: Table) -> list[Section]:
    """All curves in one plot if there are as many colours, otherwise each beside the baseline."""
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
            note = fixed(mean[-1], decimals_of(table))
            lines.append(Line(name, np.array(steps, np.float64), mean, low, high, note=note))
    if not lines:
        return []
    limits = span(lines)
    metric = table["metric"].partition("/")[2]  # of another split: the test split is not looked at while training
    about = (
        f"{metric} on the validation split while training: the mean over seeds, in a band from the lowest to the "
        "highest seed."
    )
    if len(lines) <= COLOURS:
        lines = [replace(line, hue=index) for index, line in enumerate(lines)]
        keys = [Key(line.name, line.hue, line.dash, line.note) for line in lines]
        svg = lines_svg(lines, ylabel=metric, limits=limits, size=(WIDE, 3.6))
        return [Section("Learning curves", about, drawings=[Drawing(svg, "", keys)])]
    others = [replace(line, hue=GREY, dash=DASHES["validation"]) for line in lines if line.name == table["baseline"]]
    plots = []
    for line in lines:
        beside = [other for other in others if other.name != line.name]
        svg = lines_svg([*beside, line], limits=limits, size=(SMALL, 1.8))
        plots.append(Drawing(svg, f"{line.name}: {line.note}"))
    baseline = f" The dashed line is the baseline, {table['baseline']}." if others else ""
    return [Section("Learning curves", about + baseline, drawings=plots)]


def _robustness(table: Table) -> list[Section]:
    """The metric with one modality hidden or in noise and its change, the darker the more is lost."""
    names, sign, decimals = ranked(table), (1 if table["higher_is_better"] else -1), decimals_of(table)
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
    worst = max((_loss(change, sign) for *_, changes in found for change in changes), default=0.0)
    rows = [
        [
            *(Cell(name), Cell(fixed(full, decimals)), Cell(fixed(none, decimals))),
            *(
                Cell(fixed(value, decimals), fixed(change, decimals, "+"), "", _loss(change, sign) / (worst or 1))
                for value, change in zip(values, changes, strict=True)
            ),
        ]
        for name, full, none, values, changes in found
        if any(value is not None for value in values)
    ]
    about = (
        f"{table['metric']} of the probed examples, and its change from that with all modalities. The darker, the more "
        "is lost."
    )
    heads = ["choice", "with all", "with none", *columns.values()]
    return [Section("Robustness", about, [PageTable(heads, rows)])] if rows else []


def _loss(change: Number | None, sign: int) -> float:
    return max(0.0, -sign * (change or 0.0))


def _contributions(table: Table) -> list[Section]:
    """Shapley values by choice, as gains: to the right, also where lower is better."""
    given = {name: entry.get("shapley") or {} for name, entry in ranked(table).items()}
    known = {name: values for name, values in given.items() if set(values.values()) - {None}}
    if not known:
        return []
    modalities = list(dict.fromkeys(modality for values in known.values() for modality in values))
    sign = 1 if table["higher_is_better"] else -1
    bars = [
        (name, [None if values.get(modality) is None else sign * values[modality] for modality in modalities])
        for name, values in known.items()
    ]
    gain = "gain in" if sign > 0 else "reduction of"
    xlabel = f"{gain} {table['metric']} over no modality"
    drawing = Drawing(bars_svg(bars, xlabel=xlabel, width=WIDE), "", _keys(modalities))
    return [Section("Contributions of modalities", drawings=[drawing])]


def _keys(names: Sequence[str]) -> list[Key]:
    """The legend of stacked bars."""
    return [Key(name, index % 8) for index, name in enumerate(names)]


def _interactions(table: Table) -> list[Section]:
    """What each choice found of the information that two modalities hold, below what there is."""
    truth, ranks = table["truth"], ranked(table).items()
    found = [
        (name, item) for name, entry in ranks for item in entry.get("information") or () if item["total"] is not None
    ]
    pairs = dict.fromkeys((item["a"], item["b"]) for _, item in found)
    plots = []
    for a, b in pairs:
        bars = [("ground truth", [truth[part] for part in PARTS])] if truth else []
        bars += [(name, [item[part] for part in PARTS]) for name, item in found if (item["a"], item["b"]) == (a, b)]
        width = WIDE if len(pairs) == 1 else NARROW
        svg = bars_svg(bars, xlabel="bits about the label", width=width, apart=1 if truth else 0)
        parts = [f"only {a}", f"only {b}", "either alone (redundant)", "only both together (synergy)"]
        plots.append(Drawing(svg, f"{a} and {b}", _keys(parts)))
    return [Section("Interaction of modalities", drawings=plots)] if plots else []


def _findings(table: Table) -> list[Section]:
    """What each choice found of the information that there is, where that is known."""
    rows = [[name, entry["verdict"]] for name, entry in ranked(table).items() if entry.get("verdict")]
    return [Section("Information found", tables=[PageTable(["choice", "what it found"], rows)])] if rows else []


def _growth(table: Table) -> list[Section]:
    """What a forward pass costs by the number of tokens; the costliest is first in the legend."""
    growth = table["growth"]
    if growth is None:
        return []
    names = sorted(growth["flops"], key=lambda name: (-(growth["flops"][name][-1] or 0.0), name))
    plots: list[Drawing] = []
    for key, title, unit in (("flops", "FLOPs of a forward pass", "FLOP"), ("seconds", "time of a forward pass", "s")):
        lines = []
        for index, name in enumerate(names):
            values = (growth[key] or {}).get(name) or ()
            # What is 0, such as the FLOPs of a fusion without matrix products, has no logarithm.
            known = [(size, value) for size, value in zip(growth["tokens"], values, strict=False) if value]
            hue, dash = style(index)
            exponent = growth["exponents"].get(name) if key == "flops" else None
            note = "" if exponent is None else f"exponent {exponent:.2f}"
            if known:
                sizes, costs = np.array(known, np.float64).T
                lines.append(Line(name, sizes, costs, hue=hue, dash=dash, note=note))
        if lines:
            keys = [Key(line.name, line.hue, line.dash, line.note) for line in lines]
            plots.append(Drawing(growth_svg(lines, ylabel=title, unit=unit), "", keys))
    about = (
        "The fusion by itself, on one example at width 64, whatever the experiment's own: its forward pass by the "
        "tokens that each modality has. The exponent is that of FLOPs between the two largest sizes; below 1 a fixed "
        "cost still counts."
    )
    return [Section("Growth of cost", about, drawings=plots)] if plots else []


def _failed(table: Table) -> list[Section]:
    rows = [[cell["choice"], str(cell["seed"]), cell["reason"]] for cell in table["failed"]]
    return [Section("Failed", tables=[PageTable(["choice", "seed", "why"], rows)])] if rows else []


def _reading(table: Table) -> Section:
    """What the page's terms mean."""
    cost = "time" if table["match"] == "flops" else "FLOPs"
    terms = {
        "[low, high]": "The 95 % interval of the figure above it, for other seeds and other test examples. "
        "Differences are those of the same seeds and examples, so they can be significant where intervals overlap. "
        "Each interval stands by itself and is not corrected for the number of comparisons.",
        "p (Holm)": "The probability of a difference this large where there is none, corrected for the number of "
        "comparisons (Holm 1979). Below 0.05 a difference is called significant, and coloured; a choice with no "
        "significant difference is not distinguishable.",
        "Differences that cannot be detected": "Those within the 95 % interval of the paired t test: its half width is "
        "t(97.5 %, seeds − 1) × the deviation of the differences between seeds / √seeds, pooled over choices. "
        "Choices whose seeds differ less can be distinguishable by smaller differences.",
        "Pareto": f"No other choice is better in both metric and {cost} of a step.",
    }
    if _contributions(table):
        terms["Contributions"] = (
            "Shapley values (1953): what a modality adds, on average over all orders in which modalities can be added. "
            "They sum up to what all reach less what none does."
        )
    if _interactions(table):
        terms["Interaction"] = (
            "What a model gathers about the label from two modalities, in bits: what only one has (unique), what "
            "either has (redundant), and what only both together have (synergy; Williams & Beer 2010, Bertschinger "
            "et al. 2014). It is measured with recalibrated probabilities, so it can exceed what the accuracy suggests."
        )
    return Section("How to read it", terms=[*terms.items()], folded=True)
