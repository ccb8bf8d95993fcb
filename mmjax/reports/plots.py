"""Plots as SVG in the page's colours, and pictures as data URIs."""

import base64
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmjax.metrics.classification import BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in colours that no figure uses otherwise and that then become the page's, so that curves follow light and dark.
INK, GRID = "#010203", "#040506"
HUES = tuple(f"#0708{index:02x}" for index in range(8))
DASHES: dict[str, tuple[float, ...] | None] = {"train": None, "validation": (5.0, 2.0), "test": (1.0, 1.5)}
# Becomes the colour behind a plot, for what is written on a bar or has to stand out from a line it crosses.
CARD = "#040507"
POINTS = 300
LARGEST_VALUE = 1e300  # beyond it Matplotlib finds no ticks
LARGEST_SIDE = 256


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve in one of the page's hues, in a band from `low` to `high`. A single point is a marker."""

    name: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " N"] | None = None
    high: Float[np.ndarray, " N"] | None = None
    hue: int = 0
    dash: tuple[float, ...] | None = None
    note: str = ""


def lines_svg(
    lines: Sequence[Line],
    *,
    ylabel: str = "",
    limits: tuple[float, float] | None = None,
    size: tuple[float, float] = (4.2, 2.3),
) -> str:
    """Curves over training steps, with bands, on a plot of this size in inches."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, axes = plain_axes(*size)
    for line in lines:
        keep = np.unique(np.linspace(0, len(line.x) - 1, min(POINTS, len(line.x))).round().astype(int))
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x[keep], line.low[keep], line.high[keep], color=HUES[line.hue], alpha=0.18, lw=0)
        marker = {"marker": "D", "ms": 5} if len(keep) == 1 else {"marker": "o" if len(keep) <= 12 else None, "ms": 3}
        drawn = axes.plot(line.x[keep], line.y[keep], color=HUES[line.hue], lw=1.6, **marker)
        if line.dash is not None:
            drawn[0].set_dashes(line.dash)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_xlabel("step", color=INK, fontsize=8)
    axes.set_ylabel(ylabel, color=INK, fontsize=8, parse_math=False)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(style="sci", scilimits=(-3, 4))
    axes.xaxis.set_major_locator(MaxNLocator(3 if size[0] < 4 else 5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return to_svg(figure)


def plain_axes(width: float, height: float) -> tuple["Figure", "Axes"]:
    """An empty figure of so many inches and its axes, for INK, GRID and HUES. A pixel is a point."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=72, layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=INK, fontsize=8)
    return figure, axes


def to_svg(figure: "Figure") -> str:
    """The figure as SVG in the page's colours, without a width; the same for the same figure."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "mmjax"}):  # ids are random otherwise
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})  # savefig would draw twice
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[0-9.]+pt"', r"\1", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)").replace(CARD, "var(--card)")
    for index, hue in enumerate(HUES):
        svg = svg.replace(hue, f"var(--hue-{index})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def picture_uri(image: Float[np.ndarray, "H W C"]) -> str:
    """A picture of 1, 3 or 4 channels in [0, 1] as a PNG data URI of at most LARGEST_SIDE pixels."""
    import cv2

    shown = np.nan_to_num(np.asarray(image, np.float32)).clip(0, 1)
    scale = LARGEST_SIDE / max(shown.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in shown.shape[1::-1]]
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    return data_uri("image/png", png((shown * 255).round().astype(np.uint8)))


def spectrum_uri(frames: Float[np.ndarray, "T M"]) -> str:
    """A spectrogram as a PNG data URI, drawn by `spectrum_pixels`, bands repeated until it is no strip."""
    pixels = spectrum_pixels(frames)
    return data_uri("image/png", png(pixels.repeat(max(1, pixels.shape[1] // (2 * pixels.shape[0])), axis=0)))


def spectrum_pixels(frames: Float[np.ndarray, "T M"]) -> UInt8[np.ndarray, "M W 3"]:
    """A spectrogram in colours: time to the right, low bands below, scaled to its 1st and 99th percentile."""
    import cv2
    from matplotlib import colormaps

    bands = np.asarray(frames, np.float32).T[::-1]
    finite = bands[np.isfinite(bands)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((bands - low) / max(high - low, 1e-6)).clip(0, 1)
    if scaled.shape[1] > 2 * LARGEST_SIDE:
        scaled = cv2.resize(scaled, (2 * LARGEST_SIDE, scaled.shape[0]), interpolation=cv2.INTER_AREA)
    return colormaps["magma"](scaled, bytes=True)[..., :3]


def png(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """A picture of 1, 3 or 4 channels as a PNG."""
    import cv2

    if pixels.shape[-1] >= 3:  # OpenCV has blue first
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]])
    return cv2.imencode(".png", pixels)[1].tobytes()


def data_uri(kind: str, content: bytes) -> str:
    """A file of a MIME type as a URI that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def confusion_svg(counts: Int[np.ndarray, "K K"], names: Sequence[str]) -> str:
    """A confusion matrix: true classes as rows, predicted classes as columns, normalized by row."""
    figure, axes = plain_axes(4.2, 3.6)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # Squares as large as the shares: an image would be in colours of its own.
    rows, columns = np.nonzero(shares)
    side = 190 / len(names)
    axes.scatter(columns, rows, s=side**2 * shares[rows, columns], marker="s", color=HUES[0], linewidths=0)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("predicted", color=INK, fontsize=8)
    axes.set_ylabel("true", color=INK, fontsize=8)
    return to_svg(figure)


def reliability_svg(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"]) -> str:
    """Accuracy by confidence (Guo et al. 2017, figure 1), with points as large as their number."""
    figure, axes = plain_axes(4.2, 3.6)
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == truth
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    confidence, accuracy = (np.bincount(bins, values, BINS)[there] / counts[there] for values in (sure, right))
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2)
    axes.plot(confidence, accuracy, color=HUES[0], lw=1.2)
    sizes = 12 + 90 * counts[there] / counts.max()
    axes.scatter(confidence, accuracy, s=sizes, color=HUES[0], linewidths=0)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("confidence", color=INK, fontsize=8)
    axes.set_ylabel("accuracy", color=INK, fontsize=8)
    return to_svg(figure)


def regression_svg(truth: Float[np.ndarray, "N Q"], predicted: Float[np.ndarray, "N Q"]) -> str:
    """Predicted by true values, a hue for each of Q numbers, about the line on which they are equal."""
    figure, axes = plain_axes(4.2, 3.6)
    known = np.concatenate([truth[np.isfinite(truth)], predicted[np.isfinite(predicted)]])
    ends = [float(known.min()), float(known.max())] if len(known) else [0.0, 1.0]
    axes.plot(ends, ends, color=GRID, lw=1.2)
    for place in range(truth.shape[1]):
        axes.scatter(truth[:, place], predicted[:, place], s=12, color=HUES[place % len(HUES)], alpha=0.7, linewidths=0)
    axes.set_xlabel("true", color=INK, fontsize=8)
    axes.set_ylabel("predicted", color=INK, fontsize=8)
    return to_svg(figure)
