"""Log-mel spectrograms to waveforms in NumPy: powers from mel bands, phases by Griffin-Lim."""

import math

import numpy as np
from jaxtyping import Complex, Float

from mmjax.layers import spectrogram
from mmjax.layers.spectrogram import FLOOR

OVERLAP = 4  # least number of frames per sample: with fewer the magnitudes hardly determine the phases
FILL_STEPS = 50
TINY = 1e-12


def mel_to_waveform(
    log_mel: Float[np.ndarray, "T M"],
    filters: Float[np.ndarray, "F M"],
    *,
    window: int,
    hop: int,
    iterations: int = 60,
) -> Float[np.ndarray, "S"]:
    """Samples whose `spectrogram.log_mel`, with the same filters, is about the given one; S = T hop.

    Where frames overlap little, interpolated frames are inserted before the phases are estimated.
    """
    step = min(hop, max(1, window // OVERLAP))
    length = len(log_mel) * hop
    place = np.arange(math.ceil(length / step)) * (step / hop)
    before = place.astype(int)
    after, share = np.minimum(before + 1, len(log_mel) - 1), (place - before)[:, None]
    frames = (1 - share) * log_mel[before] + share * log_mel[after]
    magnitudes = np.sqrt(mel_to_powers(np.maximum(np.exp(frames) - FLOOR, 0), filters))
    return griffin_lim(magnitudes, window=window, hop=step, iterations=iterations)[:length].astype(np.float32)


def mel_to_powers(mel: Float[np.ndarray, "T M"], filters: Float[np.ndarray, "F M"]) -> Float[np.ndarray, "T F"]:
    """Non-negative powers p at all frequencies whose mel bands p @ filters are near `mel`.

    The multiplicative updates of Lee & Seung (2001) that lower the Kullback-Leibler divergence from `mel`, starting
    from equal powers. Least squares would only fit the loud bands, because powers span eight decades.
    """
    weights = filters.sum(1)
    power = np.where(weights > 0, mel.mean(1, keepdims=True) + TINY, 0)
    for _ in range(FILL_STEPS):
        power = power * ((mel / (power @ filters + TINY)) @ filters.T) / np.maximum(weights, TINY)
    return power


def griffin_lim(
    magnitudes: Float[np.ndarray, "T F"], *, window: int, hop: int, iterations: int = 60, momentum: float = 0.99
) -> Float[np.ndarray, "S"]:
    """Samples whose short-time Fourier transform (see `stft`) has about these magnitudes.

    S = T hop. Griffin & Lim (1984), starting from fixed random phases and accelerated as by Perraudin et al. (2013),
    with their alpha as `momentum`: 0 is the original algorithm.
    """
    size = spectrogram.fft_size(window)
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitudes.shape))
    guess, before = magnitudes * phases, np.zeros(1)
    for _ in range(iterations):
        projected = stft(istft(_with_phases(magnitudes, guess), window, hop), window=window, hop=hop, size=size)
        guess = projected + momentum * (projected - before)
        before = projected
    return istft(_with_phases(magnitudes, guess), window, hop)


def stft(samples: Float[np.ndarray, "S"], *, window: int, hop: int, size: int) -> Complex[np.ndarray, "T F"]:
    """The DFT of frames as in `spectrogram.log_mel`: T = ceil(S / hop), zeros after the end."""
    import scipy.fft

    frames = math.ceil(samples.size / hop)
    padded = np.pad(samples, (0, (frames - 1) * hop + max(window, hop) - samples.size))
    framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return scipy.fft.rfft(framed * spectrogram.unit_hann(window), size)


def _with_phases(magnitudes: Float[np.ndarray, "T F"], guess: Complex[np.ndarray, "T F"]) -> np.ndarray:
    return magnitudes * guess / np.maximum(np.abs(guess), TINY)


def istft(spectra: Complex[np.ndarray, "T F"], window: int, hop: int) -> Float[np.ndarray, "S"]:
    """The T hop samples whose transform is nearest in squares (Griffin & Lim 1984, equation 6)."""
    import scipy.fft

    taper = spectrogram.unit_hann(window)
    size = spectrogram.fft_size(window)
    frames = scipy.fft.irfft(spectra, size)[:, :window] * taper
    weights = _overlap(np.broadcast_to(taper**2, frames.shape), hop)
    # At the very beginning, where windows rise from zero, samples are undetermined.
    return _overlap(frames, hop) / np.maximum(weights, 0.01 * weights.max())


def _overlap(frames: Float[np.ndarray, "T W"], hop: int) -> Float[np.ndarray, "S"]:
    """Overlap-add of frames `hop` samples apart, cut at T hop samples."""
    count, window = frames.shape
    parts = math.ceil(window / hop)
    cut = np.pad(frames, ((0, 0), (0, parts * hop - window))).reshape(count, parts, hop)
    total = np.zeros((count + parts, hop))
    for part in range(parts):
        total[part : part + count] += cut[:, part]
    return total[:count].reshape(-1)
