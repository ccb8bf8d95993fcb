"""The mel scale, its triangular filters, and the Hann window of short-time spectra."""

import functools

import numpy as np
from jaxtyping import Float


def hertz_to_mel(hertz: float | np.ndarray) -> float | np.ndarray:
    """The mel scale of O'Shaughnessy (1987), which HTK uses: 2595 log10(1 + f / 700)."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def mel_to_hertz(mel: float | np.ndarray) -> float | np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return 700 * (10 ** (np.asarray(mel) / 2595) - 1)


@functools.lru_cache
def mel_filters(rate: int, size: int, bands: int, low: float, high: float) -> Float[np.ndarray, "F M"]:
    """Weights from the `size // 2 + 1` frequencies of a DFT to triangular mel bands between `low` and `high` Hz.

    Band m rises from 0 at edge m to 1 at edge m + 1 and falls to 0 at edge m + 2, the edges evenly spaced in mel
    (Davis & Mermelstein 1980).
    """
    edges = np.asarray(mel_to_hertz(np.linspace(hertz_to_mel(low), hertz_to_mel(high), bands + 2)))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.arange(size // 2 + 1)[:, None] * (rate / size)
    rise, fall = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.clip(np.minimum(rise, fall), 0, None).astype(np.float32)


@functools.lru_cache
def hann(length: int) -> Float[np.ndarray, "W"]:
    """A periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
