"""Distances of sounds in dB: mel-cepstral distortion and log-spectral distance."""

import numpy as np
from jaxtyping import Float

from mmjax.layers.spectrogram import FLOOR, log_mel

CEPSTRA = 13  # coefficients compared: enough for the vowels, too few for the pitch
WINDOW, HOP, BANDS, LOWEST = 0.025, 0.010, 40, 50.0  # of the spectra compared, seconds and Hz
DECIBELS = 10 / np.log(10)  # in a neper of power


def log_mel_frames(samples: Float[np.ndarray, "S"], rate: int) -> Float[np.ndarray, "T M"]:
    """Log-mel frames for comparisons of sounds: 40 bands from 50 Hz, 25 ms every 10 ms."""
    window, hop = round(WINDOW * rate), round(HOP * rate)
    return log_mel(samples, rate=rate, window=window, hop=hop, bands=BANDS, low=LOWEST, high=rate / 2)


def mel_cepstral_distortion(predicted: Float[np.ndarray, "T M"], truth: Float[np.ndarray, "U M"]) -> float:
    """The mel-cepstral distortion of two sounds in dB (Kubichek 1993), from their log-mel frames.

        mean over frames of 10 / ln 10 * sqrt(2 * sum over d = 1 to 13 of (c_d - e_d)^2)
        c_d = 1/M * sum over bands m = 0 to M - 1 of L_m cos(pi d (m + 1/2) / M)

    where L is the natural logarithm of power in M mel bands, as `mmjax.layers.spectrogram.log_mel` computes it. c_0,
    the loudness, is left out. With this scale cepstra are those of the log amplitude, and a frame's distortion is the
    root mean square over the bands of the difference in dB of the two smoothed, mean-free spectra. (Orthonormal
    cepstra, which some use, make it sqrt(2 M) times as large; frames normalised like those of `SpectrogramInput` are
    not in dB.)

    Sounds of equal length are compared frame by frame, others along the dynamic time warping path with the smallest sum
    of distortions (Sakoe & Chiba 1978), averaged over the path.

    Raises:
        ValueError: a sound has no frame, or there are not more than 13 bands.
    """
    from scipy.spatial.distance import cdist

    if not len(predicted) or not len(truth) or truth.shape[1] <= CEPSTRA:
        raise ValueError(
            f"{predicted.shape} and {truth.shape}: at least 1 frame and more than {CEPSTRA} bands are needed"
        )
    scale = DECIBELS * np.sqrt(2)
    a, b = scale * _cepstra(predicted), scale * _cepstra(truth)
    if len(a) == len(b):
        return float(np.linalg.norm(a - b, axis=1).mean())
    return _warped_mean(cdist(a, b))


def _cepstra(log_mel_frames: Float[np.ndarray, "T M"]) -> Float[np.ndarray, "T 13"]:
    from scipy.fft import dct

    bands = log_mel_frames.shape[1]
    return dct(log_mel_frames.astype(np.float64), axis=1)[:, 1 : CEPSTRA + 1] / (2 * bands)


def _warped_mean(costs: Float[np.ndarray, "T U"]) -> float:
    """The mean cost along the path between opposite corners that has the smallest sum."""
    rows, columns = costs.shape
    # By antidiagonal: all its places depend on the two before only. `sums[i]` belongs to row i - 1 of the costs.
    sums = np.full((3, rows + 1), np.inf)
    lengths = np.zeros((3, rows + 1))
    sums[0, 0] = 0
    for diagonal in range(rows + columns - 1):
        row = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        # From both sounds' frames before, from the first's, from the second's.
        before = np.stack([sums[0, row], sums[1, row], sums[1, row + 1]])
        choice = before.argmin(0)
        before_lengths = np.stack([lengths[0, row], lengths[1, row], lengths[1, row + 1]])
        sums[2], lengths[2] = np.inf, 0
        sums[2, row + 1] = costs[row, diagonal - row] + before.min(0)
        lengths[2, row + 1] = 1 + np.take_along_axis(before_lengths, choice[None], 0)[0]
        sums, lengths = np.roll(sums, -1, 0), np.roll(lengths, -1, 0)
    return float(sums[1, rows] / lengths[1, rows])


def log_spectral_distance(predicted: Float[np.ndarray, "S"], truth: Float[np.ndarray, "S"], *, rate: int) -> float:
    """The log-spectral distance of two waveforms in dB (Gray & Markel 1976).

        mean over frames of sqrt(mean over frequencies of (10 log10 P - 10 log10 Q)^2)

    P and Q are the power, plus 1e-8 (-80 dB), at every frequency of whole Hann windows of 25 ms, one every 10 ms, with
    unit energy; a waveform shorter than a window is padded with zeros. A delay counts as an error.
    """
    a, b = _decibels(predicted, rate), _decibels(truth, rate)
    return float(np.sqrt(np.square(a - b).mean(1)).mean())


def _decibels(samples: Float[np.ndarray, "S"], rate: int) -> Float[np.ndarray, "T K"]:
    """The power at every frequency of every frame, dB."""
    from scipy.signal.windows import hann

    length, hop = round(WINDOW * rate), round(HOP * rate)
    window = hann(length, sym=False)
    window /= np.sqrt(np.sum(window**2))
    padded = np.pad(samples.astype(np.float64), (0, max(0, length - samples.size)))
    framed = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
    return DECIBELS * np.log(np.abs(np.fft.rfft(framed * window)) ** 2 + FLOOR)
