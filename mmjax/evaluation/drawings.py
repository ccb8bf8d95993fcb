"""What a report of an evaluation shows as drawings: confusions, reliability. SVG in the page's own colours."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mmjax.evaluation.classification import BINS
from mmjax.evaluation.figures import GRID, HUES, INK, plain_axes, to_svg


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
