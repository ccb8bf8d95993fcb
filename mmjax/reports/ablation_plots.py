"""Plots that compare choices: metric against cost, growth of cost, stacked bars."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mmjax.reports.plots import CARD, DASHES, HUES, INK, Line, plain_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# The last hue is grey: for what is shown only to compare with.
COLOURS, GREY = len(HUES) - 1, len(HUES) - 1
WIDE, NARROW, SMALL = 9.6, 5.5, 2.6  # inches across the page, half of it, a quarter of it
GAPS = (6, 14, 24, 36, 50, 66)  # points between a marker and its name, tried in this order
LONGEST_NAME = 28

Number = float | int  # JSON has whole numbers without a point


@dataclasses.dataclass(frozen=True)
class Point:
    """A choice by cost and metric from `low` to `high`. One that is `marked` is drawn as a diamond."""

    name: str
    cost: Number
    mean: Number
    low: Number
    high: Number
    marked: bool = False


def style(index: int) -> tuple[int, tuple[float, ...] | None]:
    """Hue and dash of the `index`-th of many lines: those of one hue differ by their dash."""
    return index % COLOURS, [*DASHES.values()][index // COLOURS % len(DASHES)]


def span(lines: Sequence[Line]) -> tuple[float, float]:
    """The limits of an axis on which all lines and their bands are seen."""
    values = np.concatenate([v for line in lines for v in (line.y, line.low, line.high) if v is not None])
    margin = 0.05 * float(np.ptp(values)) or 0.05 * abs(float(values[0])) or 1.0
    return float(values.min()) - margin, float(values.max()) + margin


def growth_svg(lines: Sequence[Line], *, ylabel: str, unit: str) -> str:
    """A cost by the number of tokens a modality has, both axes logarithmic."""
    from matplotlib.ticker import EngFormatter

    figure, axes = plain_axes(NARROW, 3.6)
    for line in lines:
        drawn = axes.loglog(line.x, line.y, color=HUES[line.hue], lw=1.6, marker="o", ms=3)
        if line.dash is not None:
            drawn[0].set_dashes(line.dash)
    sizes = sorted({int(size) for line in lines for size in line.x})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_formatter(EngFormatter(unit))
    axes.minorticks_off()
    axes.set_xlabel("tokens per modality", color=INK, fontsize=8)
    axes.set_ylabel(ylabel, color=INK, fontsize=8, parse_math=False)
    return to_svg(figure)


def front(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The Pareto front from cheap to dear: every point that is better than all that cost no more."""
    sign = 1 if higher_is_better else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.mean)):
        if not found or sign * point.mean > sign * found[-1].mean:
            found.append(point)
    return found


def scatter_svg(points: Sequence[Point], *, xlabel: str, unit: str, ylabel: str, higher_is_better: bool) -> str:
    """Metric by cost with intervals, names and the Pareto front; logarithmic where costs differ much."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    figure, axes = plain_axes(NARROW, 4.2)
    best = front(points, higher_is_better)
    for point in points:
        colour = HUES[0] if point in best else HUES[GREY]
        axes.plot([point.cost] * 2, [point.low, point.high], color=colour, lw=1.2, alpha=0.6)
        axes.plot(point.cost, point.mean, "D" if point.marked else "o", color=colour, ms=6, mec=CARD, mew=0.8)
    axes.plot([p.cost for p in best], [p.mean for p in best], color=HUES[0], lw=1, dashes=(4, 2), zorder=1)
    costs = [point.cost for point in points]
    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log")
        decades = max(costs) > 30 * min(costs)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(unit))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel(xlabel, color=INK, fontsize=8, parse_math=False)
    axes.set_ylabel(ylabel, color=INK, fontsize=8, parse_math=False)
    _name_points(axes, points, best)
    return to_svg(figure)


def _name_points(axes: "Axes", points: Sequence[Point], joined: Sequence[Point]) -> None:
    """Writes each name at the nearest place where it covers no marker, interval, line or other name."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what was measured stays
    frame = np.array(axes.bbox.extents)
    places = axes.transData.transform([(point.cost, point.mean) for point in points])
    ends = [axes.transData.transform([(p.cost, p.low), (p.cost, p.high)]) for p in points]
    corners = axes.transData.transform([(point.cost, point.mean) for point in joined])
    lines = [*ends, *np.stack([corners[:-1], corners[1:]], 1)]
    dots = np.concatenate([np.linspace(a, b, 2 + int(np.linalg.norm(b - a) / 4)) for a, b in lines])
    markers, crossed = np.hstack([places - 4, places + 4]), np.hstack([dots - 2, dots + 2])
    taken = list(markers)
    # Those with the least room choose first: the ones in the middle of the crowd.
    crowd = (1 / np.linalg.norm(places[:, None] - places[None], axis=-1).clip(20)).sum(1)
    for index in np.argsort(-crowd, kind="stable").tolist():
        point, place = points[index], places[index]
        text = axes.annotate(
            *(_shortened(point.name), (point.cost, point.mean), (0, 0)),
            textcoords="offset points",
            ha="center",
            va="center",
            color=INK,
            fontsize=7.5,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.4, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
            path_effects=[withStroke(linewidth=2, foreground=CARD)],
        )
        half = np.array(Text.get_window_extent(text).size) / 2  # without the line that leads to it
        found = [
            (_crowding(place + offset, half, index, markers, np.array(taken), crossed, frame), offset)
            for offset in _offsets(half)
        ]
        offset = min(found, key=lambda pair: pair[0])[1]
        text.set_position(tuple(offset))
        near = (np.abs(offset) - half).max() < GAPS[1]
        if text.arrow_patch is not None and (near or offset[0] == 0):  # an upright one would look like an interval
            text.arrow_patch.set_visible(False)
        taken.append(np.concatenate([place + offset - half, place + offset + half]))


def _offsets(half: Float[np.ndarray, "2"]) -> list[Float[np.ndarray, "2"]]:
    """Where the middle of a name may lie, seen from its point: in eight directions, near before far."""
    ways = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    return [np.array(way) * (half + gap) for gap, way in itertools.product(GAPS, ways)]


def _crowding(
    middle: Float[np.ndarray, "2"],
    half: Float[np.ndarray, "2"],
    index: int,
    markers: Float[np.ndarray, "N 4"],
    taken: Float[np.ndarray, "M 4"],
    crossed: Float[np.ndarray, "K 4"],
    frame: Float[np.ndarray, "4"],
) -> float:
    """How bad a place for a name is: outside, covered, nearer to another point, on a line, or far."""
    low, high = middle - half - 1, middle + half + 1
    outside = np.maximum(frame[:2] - low, 0).sum() + np.maximum(high - frame[2:], 0).sum()
    gaps = np.linalg.norm(np.maximum(np.maximum(low - markers[:, 2:], markers[:, :2] - high), 0), axis=1)
    nearer = max(0.0, gaps[index] + 2 - np.delete(gaps, index).min(initial=np.inf))
    far = np.linalg.norm(middle - markers[index].reshape(2, 2).mean(0))
    return float(1000 * outside + 100 * _covered(low, high, taken) + 10 * nearer + _covered(low, high, crossed) + far)


def _covered(
    low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], boxes: Float[np.ndarray, "N 4"]
) -> Float[np.floating, ""]:
    return np.maximum(np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2]), 0).prod(1).sum()


def bars_svg(bars: Sequence[tuple[str, Sequence[Number | None]]], *, xlabel: str, width: float, apart: int = 0) -> str:
    """Stacked bars from the top down with sums at the ends; negative parts lie to the left.

    The `apart` first bars stand apart from the others.
    """
    figure, axes = plain_axes(width, 0.75 + 0.23 * (len(bars) + (apart > 0)))
    heights = [-(index + (index >= apart > 0)) for index in range(len(bars))]
    known = [[value or 0.0 for value in values] for _, values in bars]
    ends = [(sum(min(v, 0) for v in values), sum(max(v, 0) for v in values)) for values in known]
    whole = (max(end for _, end in ends) - min(start for start, _ in ends)) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(whole)))
    write = functools.partial(axes.text, fontsize=7, va="center_baseline")
    for height, values, (start, end) in zip(heights, known, ends, strict=True):
        edges = {False: 0.0, True: 0.0}  # of what is positive and what is negative
        for hue, value in enumerate(values):
            left = edges[value < 0]
            edges[value < 0] += value
            axes.barh(height, value, 0.74, left, color=HUES[hue % len(HUES)], ec=CARD, lw=0.6)
            if abs(value) > 0.4 / width * whole:
                write(left + value / 2, height, _fixed(value, decimals), color=CARD, ha="center")
        write(end + 0.01 * whole, height, _fixed(start + end, decimals), color=INK)
    axes.set_yticks(heights, [_shortened(name) for name, _ in bars], parse_math=False)
    axes.set_ylim(min(heights) - 0.6, 0.6)
    axes.set_xlim(right=max(end for _, end in ends) + 0.3 / width * whole)
    axes.axvline(0, color=INK, lw=0.8)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(xlabel, color=INK, fontsize=8, parse_math=False)
    return to_svg(figure)


def _fixed(value: Number, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
