"""What a profile's page shows: a flame graph, a roofline, and the course of memory."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from mmjax.reports.plots import GRID, HUES, INK, plain_axes, to_svg

# Levels of a flame graph, and the share of the whole below which a bar is left out.
LEVELS, SMALLEST = 14, 0.004


@dataclasses.dataclass
class Flame:
    """A function with what it and those that it called took, seconds."""

    name: str
    seconds: float = 0.0
    inside: dict[str, "Flame"] = dataclasses.field(default_factory=dict)

    def add(self, stack: Sequence[str], seconds: float) -> None:
        """Counts seconds of the innermost of these functions to all of them."""
        self.seconds += seconds
        if stack:
            self.inside.setdefault(stack[0], Flame(stack[0])).add(stack[1:], seconds)


def flame(stacks: Sequence[tuple[Sequence[str], float]]) -> Flame:
    """The functions by who called whom, without those that all have in common."""
    root = Flame("step")
    for stack, seconds in stacks:
        root.add(stack, seconds)
    while len(root.inside) == 1 and next(iter(root.inside.values())).seconds > 0.98 * root.seconds:
        root = next(iter(root.inside.values()))
    return root


def _bars(node: Flame, level: int, begin: float, least: float) -> Iterator[tuple[int, float, Flame]]:
    yield level, begin, node
    for child in sorted(node.inside.values(), key=lambda each: -each.seconds):
        if child.seconds >= least and level < LEVELS:
            yield from _bars(child, level + 1, begin, least)
        begin += child.seconds


def flame_svg(root: Flame) -> str:
    """Bars as wide as functions took long, callers above what they called."""
    bars = list(_bars(root, 0, 0.0, SMALLEST * root.seconds))
    depth = 1 + max(level for level, _, _ in bars)
    width = 9.0
    figure, axes = plain_axes(width, 0.26 * depth + 0.4)
    for level, begin, node in bars:
        axes.barh(
            -level,
            1e3 * node.seconds,
            left=1e3 * begin,
            height=0.92,
            color=HUES[level % len(HUES)],
            alpha=0.35,
            edgecolor=GRID,
            lw=0.4,
        )
        letters = math.floor(node.seconds / root.seconds * width * 12.5)
        name = node.name.rpartition(".")[0].rpartition(".")[2] or node.name
        label = node.name if len(node.name) <= letters else name
        if letters >= 4:
            label = f" {label[:letters]}"
            place = 1e3 * begin, -level
            axes.text(*place, label, va="center", fontsize=6.5, color=INK, clip_on=True, parse_math=False)
    axes.set_yticks([])
    axes.set_xlim(0, 1e3 * root.seconds)
    axes.grid(visible=False)
    axes.set_xlabel("ms of a step", color=INK, fontsize=8)
    return to_svg(figure)


def roofline_svg(points: Sequence[tuple[float, float, float]], peak: float, bandwidth: float) -> str:
    """A log-log roofline plot of kernels, given as (FLOP/byte, FLOP/s, share of the step)."""
    from matplotlib.ticker import EngFormatter

    figure, axes = plain_axes(6.0, 3.4)
    ridge = peak / bandwidth
    low = min([0.1 * ridge, *(x for x, _, _ in points)])
    high = max([10 * ridge, *(x for x, _, _ in points)])
    axes.loglog([low, ridge, high], [low * bandwidth, peak, peak], color=INK, lw=1.2)
    for intensity, rate, share in points:
        axes.plot(intensity, rate, "o", ms=2 + 14 * math.sqrt(share), color=HUES[0], alpha=0.5, mew=0)
    axes.set_xlabel("FLOP per byte", color=INK, fontsize=8)
    axes.set_ylabel("FLOP/s", color=INK, fontsize=8)
    axes.yaxis.set_major_formatter(EngFormatter(""))
    axes.minorticks_off()
    return to_svg(figure)


def memory_svg(sizes: Sequence[int]) -> str:
    """Bytes of temporaries by the place in the program."""
    figure, axes = plain_axes(6.0, 2.0)
    axes.fill_between(range(len(sizes)), [size / 2**20 for size in sizes], color=HUES[0], alpha=0.4, lw=0, step="mid")
    axes.set_xlabel("instruction, in the program's order", color=INK, fontsize=8)
    axes.set_ylabel("MiB", color=INK, fontsize=8)
    axes.set_ylim(0)
    return to_svg(figure)
