"""Log-mel spectrograms in NumPy, fast enough to be made anew for every example, and resampling."""

import functools
import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from mmjax.layers.mel import hann, mel_filters

FLOOR = 1e-8  # of the power of a full-scale signal, -80 dB: what digital silence is taken for
LARGEST_DIVISOR = 2**16  # of a ratio of rates; those that are in use have divisors of a few hundred
UNTHREADED = 2**18  # multiplications in a matrix product that OpenBLAS still does in the calling thread


def fft_size(window: int) -> int:
    """The smallest length of at least `window` samples with no prime factor above 5, which a DFT takes quickly."""
    size, rest = window, 0
    while rest != 1:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        size += rest != 1
    return size


@functools.lru_cache
def unit_hann(length: int) -> Float[np.ndarray, "W"]:
    """A periodic Hann window of unit energy, so that the power of white noise does not depend on its length."""
    window = hann(length)
    return window / np.sqrt(np.sum(np.square(window, dtype=np.float64))).astype(np.float32)


def log_mel(
    samples: Float[np.ndarray, "S"], *, rate: int, window: int, hop: int, bands: int, low: float, high: float
) -> Float[np.ndarray, "T M"]:
    """The log power in mel bands of frames of `window` samples, one beginning at every `hop`-th: T = ceil(S / hop).

    Frames that reach beyond the end see zeros there. Windows are Hann; the logarithm is natural, of power + `FLOOR`.
    """
    import scipy.fft  # its transforms of many short rows take a sixth of the time of NumPy's

    size = fft_size(window)
    filters = mel_filters(rate, size, bands, low, high)
    # A product large enough for BLAS to use threads takes a hundred times as long while a training step has the cores.
    frames = math.ceil(samples.size / hop)
    blocks = math.ceil(frames * filters.size / UNTHREADED)
    rows = math.ceil(frames / blocks) * blocks
    padded = np.zeros((rows - 1) * hop + max(window, hop), np.float32)
    padded[: samples.size] = samples
    framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:rows]
    spectrum = scipy.fft.rfft(framed * unit_hann(window), size)
    power = spectrum.real**2
    power += spectrum.imag**2
    mel = power.reshape(blocks, -1, len(filters)) @ filters
    mel += np.float32(FLOOR)
    return np.log(mel, out=mel).reshape(rows, bands)[:frames]


def resample(samples: Float[np.ndarray, "S"], rate: int, wanted: int) -> Float[np.ndarray, "R"]:
    """The recording at another rate, by a polyphase filter; R = ceil(S wanted / rate).

    The ratio of two rates that have almost no factor in common is rounded, to an error of less than 1e-5.
    """
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    # The filter has 20 taps for each unit of the denominator, 20 million from 999,983 to 8,000.
    ratio = Fraction(wanted, rate).limit_denominator(LARGEST_DIVISOR)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32, copy=False)
