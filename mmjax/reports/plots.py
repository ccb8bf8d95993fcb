"""Plots as SVG in the page's colours (curves, confusion, reliability); images and spectrograms as data URIs."""

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmjax.metrics.classification import BINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn in colours that no figure uses otherwise and that then become the page's, so that curves follow light and dark.
INK, GRID = "#010203", "#040506"
HUES = tuple(f"#0708{index:02x}" for index in range(8))
DASHES: dict[str, tuple[float, ...] | None] = {"train": None, "validation": (5.0, 2.0), "test": (1.0, 1.5)}
POINTS = 300
LARGEST_VALUE = 1e300  # beyond it Matplotlib finds no ticks
LARGEST_SIDE = 256
FIRST_PANELS = ("loss", "accuracy", "recall@1", "recall@5", "recall@10", "median_rank")
LAST_PANELS = ("learning_rate", "gradient_norm", "steps_per_second", "examples_per_second", "utilisation")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a panel: a metric of an output (or "") in a split, by step. `last` is its last finite value."""

    split: str
    output: str
    steps: np.ndarray
    values: np.ndarray
    last: float | None
    hue: int = 0

    @property
    def name(self) -> str:
        return f"{self.split} {self.output}".strip()

    @property
    def dash(self) -> tuple[float, ...] | None:
        return DASHES.get(self.split, (5.0, 1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Panel:
    """The curves of one metric, drawn together."""

    title: str
    curves: tuple[Curve, ...]


def panels(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels of a run: one a metric, the total apart from the outputs' own, at most 8 outputs each.

    Losses, accuracies and recalls come first, then other metrics, then learning rate, gradient norm and throughput.
    """
    grouped: dict[tuple[str, bool], dict[tuple[str, str], str]] = {}
    for key in dict.fromkeys(key for line in history for key in line if "/" in key):
        split, output, metric = _parts(key)
        grouped.setdefault((metric, bool(output)), {})[split, output] = key
    found = []
    for metric, own in sorted(grouped, key=lambda group: (_place(group[0]), group[0], group[1])):
        keys = grouped[metric, own]
        outputs = list(dict.fromkeys(output for _, output in keys))
        for start in range(0, len(outputs), len(HUES)):
            shown = outputs[start : start + len(HUES)]
            curves = [
                Curve(split, output, *_series(history, key), hue=shown.index(output) if own else _split_hue(split))
                for (split, output), key in keys.items()
                if output in shown
            ]
            title = metric.replace("_", " ") + (" by output" if own and (metric, False) in grouped else "")
            found.append(Panel(title, tuple(curves)))
    return found


def _parts(key: str) -> tuple[str, str, str]:
    """Split, output and metric of "split/output/metric"; the directions of a retrieval are outputs of one metric."""
    split, *middle, metric = key.split("/")
    family = re.search(r"(?:^|_)(recall@\d+|median_rank)$", metric)
    if family:
        middle.append(metric[: family.start()].replace("_", " "))
        metric = family.group(1)
    return split, " ".join(part for part in middle if part), metric


def _place(metric: str) -> int:
    if metric in FIRST_PANELS:
        return FIRST_PANELS.index(metric)
    return 200 + LAST_PANELS.index(metric) if metric in LAST_PANELS else 100


def _split_hue(split: str) -> int:
    return [*DASHES].index(split) if split in DASHES else len(DASHES)


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Steps and values of a metric, averaged over neighbours where there are more than can be seen; its last value."""
    pairs = np.array([(line["step"], line[key]) for line in history if line.get(key) is not None], np.float64)
    pairs = pairs.reshape(-1, 2)[(np.abs(pairs.reshape(-1, 2)) < LARGEST_VALUE).all(1)]
    parts = np.array_split(pairs, min(POINTS, max(len(pairs), 1)))
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1], float(pairs[-1, 1]) if len(pairs) else None


def curves_svg(panel: Panel, prefix: str) -> str:
    """A panel as an SVG element to stand in the page. `prefix` keeps its ids apart from those of other panels."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = plain_axes(4.2, 2.3)
    for curve in panel.curves:
        few = len(curve.steps) <= 12
        line = axes.plot(curve.steps, curve.values, color=HUES[curve.hue], lw=1.6, marker="o" if few else None, ms=3)[0]
        if curve.dash is not None:
            line.set_dashes(curve.dash)
    if re.match("accuracy|recall", panel.title):
        axes.set_ylim(0, 1.03)
    axes.set_xlabel("step", color=INK, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(style="sci", scilimits=(-3, 4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=INK, fontsize=8)
    return to_svg(figure, prefix)


def plain_axes(width: float, height: float) -> tuple["Figure", Any]:
    """An empty figure of so many inches and its axes, to be drawn on in INK, GRID and HUES."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    return figure, axes


def to_svg(figure: "Figure", prefix: str) -> str:
    """The figure as an SVG element of the page, whose ids begin with `prefix`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})  # savefig would draw twice
    return adopted(drawn.getvalue(), prefix)


def adopted(svg: str, prefix: str) -> str:
    """An SVG document as an element of the page: no prologue, ids of its own, the page's colours and width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[0-9.]+pt"', r"\1", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    for index, hue in enumerate(HUES):
        svg = svg.replace(hue, f"var(--hue-{index})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def picture_uri(image: Float[np.ndarray, "H W C"]) -> str:
    """A picture of 1, 3 or 4 channels in [0, 1] as a PNG data URI, shrunk if it is larger than a card shows."""
    import cv2

    shown = np.nan_to_num(np.asarray(image, np.float32)).clip(0, 1)
    scale = LARGEST_SIDE / max(shown.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in shown.shape[1::-1]]
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    return data_uri("image/png", png((shown * 255).round().astype(np.uint8)))


def spectrum_uri(frames: Float[np.ndarray, "T M"]) -> str:
    """A spectrogram as a PNG data URI, drawn by `spectrum_pixels`."""
    return data_uri("image/png", png(spectrum_pixels(frames)))


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


def confusion_svg(counts: Int[np.ndarray, "K K"], names: Sequence[str], prefix: str) -> str:
    """A matrix of how often class k (row) is called class l (column), as shares of the rows."""
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
    axes.set_xlabel("said", color=INK, fontsize=8)
    axes.set_ylabel("true", color=INK, fontsize=8)
    return to_svg(figure, prefix)


def reliability_svg(probabilities: Float[np.ndarray, "N K"], truth: Int[np.ndarray, "N"], prefix: str) -> str:
    """How often answers are right by how sure they are (Guo et al. 2017, figure 1); points as large as their number."""
    figure, axes = plain_axes(4.2, 3.6)
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == truth
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    there = counts > 0
    means = [np.bincount(bins, values, BINS)[there] / counts[there] for values in (sure, right)]
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2)
    axes.plot(*means, color=HUES[0], lw=1.2)
    axes.scatter(*means, s=12 + 90 * counts[there] / counts.max(), color=HUES[0], linewidths=0)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("confidence", color=INK, fontsize=8)
    axes.set_ylabel("share that is right", color=INK, fontsize=8)
    return to_svg(figure, prefix)
