"""Mel filters, log-mel spectrograms in NumPy that are fast enough to compute per example, resampling."""

import functools
import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float

FLOOR = 1e-8  # of the power of a full-scale signal, -80 dB: what digital silence is taken for
LARGEST_DIVISOR = 2**16  # of a ratio of rates; those that are in use have divisors of a few hundred
WHISPER_RATE, WHISPER_WINDOW, WHISPER_HOP = 16_000, 400, 160  # samples: a second, of a window, from frame to frame
UNTHREADED = 2**18  # multiplications in a matrix product that OpenBLAS still does in the calling thread


def hertz_to_mel(hertz: float | np.ndarray) -> float | np.ndarray:
    """The mel scale of O'Shaughnessy (1987), which HTK uses: 2595 log10(1 + f / 700)."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def mel_to_hertz(mel: float | np.ndarray) -> float | np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return 700 * (10 ** (np.asarray(mel) / 2595) - 1)


@functools.lru_cache
def mel_filters(rate: int, size: int, bands: int, low: float, high: float) -> Float[np.ndarray, "F M"]:
    """Triangular mel filters [F M] between `low` and `high` Hz for a DFT of `size`, F = size // 2 + 1.

    Band m rises from 0 at edge m to 1 at edge m + 1 and falls to 0 at edge m + 2, the edges evenly spaced in mel (Davis
    & Mermelstein 1980).
    """
    edges = np.asarray(mel_to_hertz(np.linspace(hertz_to_mel(low), hertz_to_mel(high), bands + 2)))
    return _triangles(edges, rate, size).astype(np.float32)


@functools.lru_cache
def slaney_filters(rate: int, size: int, bands: int) -> Float[np.ndarray, "F M"]:
    """Triangular mel filters of unit area [F M] for a DFT of `size`, as Whisper has them.

    They reach up to half the rate, evenly spaced on a scale that is linear up to 1 kHz and logarithmic above (Slaney
    1998, Auditory Toolbox).
    """
    step, per_octave = 200 / 3, 27 / math.log(6.4)  # hertz a mel below 1 kHz, mels a factor of e above
    mels = np.linspace(0, 15 + per_octave * math.log(rate / 2 / 1000), bands + 2)
    edges = np.where(mels < 15, step * mels, 1000 * np.exp((mels - 15) / per_octave))
    return (_triangles(edges, rate, size) * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


def _triangles(edges: Float[np.ndarray, "E"], rate: int, size: int) -> Float[np.ndarray, "F M"]:
    """Filters that rise from 0 at one edge to 1 at the next and fall to 0 at the one after, M = E - 2."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.arange(size // 2 + 1)[:, None] * (rate / size)
    rise, fall = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.clip(np.minimum(rise, fall), 0, None)


def _hann(length: int) -> Float[np.ndarray, "W"]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@functools.lru_cache
def hann(length: int) -> Float[np.ndarray, "W"]:
    """A periodic Hann window."""
    return _hann(length).astype(np.float32)


@functools.lru_cache
def unit_hann(length: int) -> Float[np.ndarray, "W"]:
    """A periodic Hann window with unit energy.

    So the power of white noise does not depend on its length.
    """
    window = _hann(length)
    return (window / np.sqrt(np.sum(window**2))).astype(np.float32)


def fft_size(window: int) -> int:
    """The smallest length >= `window` with no prime factor above 5, for which an FFT is fast."""
    size, rest = window, 0
    while rest != 1:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        size += rest != 1
    return size


def log_mel(
    samples: Float[np.ndarray, "S"], *, rate: int, window: int, hop: int, bands: int, low: float, high: float
) -> Float[np.ndarray, "T M"]:
    """The log power in mel bands of frames of `window` samples, one every `hop`: T = ceil(S / hop).

    Frames are padded with zeros at the end. Windows are Hann; the logarithm is natural, of power + `FLOOR`.
    """
    filters = mel_filters(rate, fft_size(window), bands, low, high)
    mel = mel_power(samples, unit_hann(window), hop, math.ceil(samples.size / hop), filters)
    mel += np.float32(FLOOR)
    return np.log(mel, out=mel)


def whisper_log_mel(samples: Float[np.ndarray, "S"], bands: int) -> Float[np.ndarray, "T M"]:
    """Whisper's log-mel frames of samples at 16 kHz, one every 10 ms: T = S // 160 (Radford et al. 2023).

    Windows of 25 ms are centred on their frame's time, and the samples mirrored at both ends. The logarithm is decimal,
    of power that is at least 1e-10 and at least 1e-8 of the largest; then 4 is added, and the sum divided by 4.
    """
    window, hop = WHISPER_WINDOW, WHISPER_HOP
    mirrored = np.pad(samples, window // 2, mode="reflect")
    filters = slaney_filters(WHISPER_RATE, window, bands)
    mel = np.log10(np.maximum(mel_power(mirrored, hann(window), hop, samples.size // hop, filters), 1e-10))
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


def mel_power(
    samples: Float[np.ndarray, "S"],
    taper: Float[np.ndarray, "W"],
    hop: int,
    frames: int,
    filters: Float[np.ndarray, "F M"],
) -> Float[np.ndarray, "T M"]:
    """The power that filters let through of so many frames, one every `hop` samples, times `taper`.

    Frames are padded with zeros at the end, and transforms to `fft_size`.
    """
    import scipy.fft  # its transforms of many short rows take a sixth of the time of NumPy's

    # A product large enough for BLAS to use threads takes a hundred times as long while a training step has the cores.
    blocks = math.ceil(frames * filters.size / UNTHREADED)
    rows = math.ceil(frames / blocks) * blocks
    padded = np.zeros((rows - 1) * hop + max(taper.size, hop), np.float32)
    padded[: samples.size] = samples[: padded.size]
    framed = np.lib.stride_tricks.sliding_window_view(padded, taper.size)[::hop][:rows]
    spectrum = scipy.fft.rfft(framed * taper, fft_size(taper.size))
    power = spectrum.real**2
    power += spectrum.imag**2
    mel = power.reshape(blocks, -1, len(filters)) @ filters
    return mel.reshape(rows, -1)[:frames]


def resample(samples: Float[np.ndarray, "S"], rate: int, new_rate: int) -> Float[np.ndarray, "R"]:
    """The recording at another rate, by a polyphase filter; R = ceil(S wanted / rate).

    A ratio of two rates with almost no common factor is rounded, to an error of less than 1e-5.
    """
    if rate == new_rate:
        return samples
    from scipy.signal import resample_poly

    ratio = _ratio(rate, new_rate)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32, copy=False)


def resampled_length(count: int, rate: int, new_rate: int) -> int:
    """The number of samples that `resample` makes of `count`."""
    return math.ceil(count * _ratio(rate, new_rate))


def _ratio(rate: int, new_rate: int) -> Fraction:
    # The filter has 20 taps for each unit of the denominator, 20 million from 999,983 to 8,000.
    return Fraction(new_rate, rate).limit_denominator(LARGEST_DIVISOR)
