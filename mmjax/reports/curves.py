"""The curves of a run: a plot for each metric of each output, with a line for each split."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.formatting import number
from mmjax.reports.page import Drawing, Key, Section, Table
from mmjax.reports.plots import DASHES, LARGEST_VALUE, POINTS, Line, lines_svg

# What keeps the page small.
MOST_PLOTS = 24
# The metrics by which outputs are judged first; of retrieval that is the recall of both directions.
PRIMARY = re.compile(r"accuracy|exact|word_error|absolute_error|(.*_)?recall@1|square_error|spectral_distance")
OTHER = "Other metrics"
SHARE = re.compile(r"accuracy|exact|(.*_)?recall@\d+")

Series = dict[str, Line]


def curve_sections(history: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Plots of the loss and the main metrics; folded, those of other metrics, optimization and speed.

    `history` are lines with `step` and "split/output/metric". A metric that was logged once is a number in a table.
    """
    found = series(history)
    measured = {output for output, metric in found if PRIMARY.fullmatch(metric)}
    kinds: dict[str, list[tuple[str, str]]] = {"Curves": [], OTHER: [], "Optimization and speed": []}
    for output, metric in found:
        if not output:
            kind = "Curves" if metric == "loss" else "Optimization and speed"
        else:
            main = PRIMARY.fullmatch(metric) or (metric == "loss" and output not in measured)
            kind = "Curves" if main else OTHER
        kinds[kind].append((output, metric))
    once = [key for key, lines in found.items() if max(len(line.x) for line in lines.values()) == 1]
    rows = [
        [_title(*key), f"{split}, step {int(line.x[-1]):,}", line.note]
        for key in once
        for split, line in found[key].items()
    ]
    room, sections = MOST_PLOTS, []
    for kind, keys in kinds.items():
        drawn = [key for key in keys if key not in once]
        left_out = [_title(*key) for key in drawn[room:]]
        about = f"In metrics.jsonl and TensorBoard only: {', '.join(left_out)}." if left_out else ""
        drawings = [_draw(*key, found[key]) for key in drawn[:room]]
        room -= len(drawings)
        tables = [Table(["logged once", "at", "value"], rows)] if rows and kind == OTHER else []
        if drawings or tables or about:
            sections.append(Section(kind, about, tables, drawings, folded=kind != "Curves"))
    return sections


def series(history: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """The lines of each output ("" is the run) and metric by split; those with no finite value left out."""
    splits = [*DASHES]
    keys: dict[tuple[str, str], dict[str, str]] = {}
    for key in dict.fromkeys(key for line in history for key in line if "/" in key):
        split, *middle, metric = key.split("/")
        keys.setdefault(("/".join(middle), metric), {})[split] = key
        splits += [split] if split not in splits else []
    found: dict[tuple[str, str], Series] = {}
    for (output, metric), by_split in sorted(
        keys.items(), key=lambda item: (item[0][0], item[0][1] == "loss", item[0])
    ):
        for split, key in sorted(by_split.items(), key=lambda item: splits.index(item[0])):
            steps, values = _points(history, key)
            if len(steps):
                place = splits.index(split)
                dash = DASHES.get(split, (5.0, 1.0, 1.0, 1.0))
                line = Line(split, steps, values, hue=place % 7, dash=dash, note=number(float(values[-1])))
                found.setdefault((output, metric), {})[split] = line
    return found


def _points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, averaged over neighbours where there are many, but for the last."""
    pairs = np.array([(line["step"], line[key]) for line in history if line.get(key) is not None], np.float64)
    pairs = pairs.reshape(-1, 2)[(np.abs(pairs.reshape(-1, 2)) < LARGEST_VALUE).all(1)]
    parts = [*np.array_split(pairs[:-1], min(POINTS - 1, max(len(pairs) - 1, 1))), pairs[-1:]]
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _draw(output: str, metric: str, lines: Series) -> Drawing:
    limits = (0.0, 1.03) if SHARE.fullmatch(metric) else None
    legend = [Key(split, line.hue, line.dash, line.note) for split, line in lines.items()]
    return Drawing(lines_svg([*lines.values()], limits=limits), _title(output, metric), legend)


def _title(output: str, metric: str) -> str:
    return f"{output}: {metric}".removeprefix(": ").replace("_", " ")
