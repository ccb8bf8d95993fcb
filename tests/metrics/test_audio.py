"""Distances of sounds against what they must be in decibels, and time warping against all paths."""

import functools

import numpy as np
import pytest
import scipy.signal

from mmjax.layers.spectrogram import log_mel
from mmjax.metrics.audio import _warped_mean, log_spectral_distance, mel_cepstral_distortion

BANDS = 24
RATE = 8000


def ripple(order: int, decibels: float, frames: int = 6) -> np.ndarray:
    """A log-power spectrum that differs from a flat one by a cosine of so many half waves and decibels."""
    nepers = decibels * np.log(10) / 10
    return np.tile(nepers * np.cos(np.pi * order * (np.arange(BANDS) + 0.5) / BANDS), (frames, 1))


def test_distortion_is_the_root_mean_square_difference_in_decibels():
    flat = np.zeros((6, BANDS))
    for order in (1, 7, 13):
        assert mel_cepstral_distortion(flat, ripple(order, 3.0)) == pytest.approx(3 / np.sqrt(2))
    assert mel_cepstral_distortion(flat, ripple(2, 3.0) + ripple(5, 4.0)) == pytest.approx(5 / np.sqrt(2))
    # Loudness and what is finer than 13 half waves are left out.
    assert mel_cepstral_distortion(flat, flat + 2.5) == pytest.approx(0, abs=1e-12)
    assert mel_cepstral_distortion(flat, ripple(14, 3.0)) == pytest.approx(0, abs=1e-12)


def test_distortion_is_the_formula_written_out():
    rng = np.random.default_rng(0)
    said, truth = rng.normal(size=(2, 5, BANDS)).astype(np.float32)
    total = 0.0
    for frame in range(5):
        squares = 0.0
        for d in range(1, 14):
            basis = [np.cos(np.pi * d * (m + 0.5) / BANDS) for m in range(BANDS)]
            squares += float(np.dot(said[frame] - truth[frame], basis) / BANDS) ** 2
        total += 10 / np.log(10) * np.sqrt(2 * squares)
    assert mel_cepstral_distortion(said, truth) == pytest.approx(total / 5, rel=1e-5)


def slow_warp(costs: np.ndarray) -> tuple[float, int]:
    """The smallest sum over all paths, and the length of a path that has it, by recursion."""

    @functools.cache
    def best(i, j):
        if i == j == 0:
            return costs[0, 0], 1
        before = [best(*place) for place in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if min(place) >= 0]
        total, length = min(before)
        return total + costs[i, j], length + 1

    return best(costs.shape[0] - 1, costs.shape[1] - 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (6, 9), (9, 6), (7, 7)])
def test_warping_finds_the_best_of_all_paths(shape):
    costs = np.random.default_rng(1).uniform(size=shape)
    total, length = slow_warp(costs)
    assert _warped_mean(costs) == pytest.approx(total / length)


def test_a_slower_sound_is_no_other_sound():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(10, BANDS))
    assert mel_cepstral_distortion(np.repeat(truth, 2, 0), truth) == pytest.approx(0, abs=1e-12)
    assert mel_cepstral_distortion(np.repeat(truth, 2, 0)[:10], truth) > 1
    # All pairs of frames are equally far apart, so that every path's mean is that distance.
    assert mel_cepstral_distortion(np.zeros((3, BANDS)), ripple(4, 2.0, frames=7)) == pytest.approx(2 / np.sqrt(2))


def test_real_log_mels_can_be_compared():
    time = np.arange(RATE) / RATE
    make = functools.partial(log_mel, rate=RATE, window=200, hop=80, bands=40, low=50.0, high=4000.0)
    noise = np.random.default_rng(5).normal(size=RATE) / 10
    low, high = (np.sin(2 * np.pi * hertz * time) + noise for hertz in (300, 1500))
    # Half as loud is no other sound.
    same, low, high = (make(samples.astype(np.float32)) for samples in (low / 2, low, high))
    assert mel_cepstral_distortion(same, low) < 1e-3
    assert mel_cepstral_distortion(high, low) > 10


def test_sounds_without_frames_or_with_few_bands():
    with pytest.raises(ValueError, match=r"\(0, 24\) and \(3, 24\)"):
        mel_cepstral_distortion(np.zeros((0, BANDS)), np.zeros((3, BANDS)))
    with pytest.raises(ValueError, match="13"):
        mel_cepstral_distortion(np.zeros((3, 13)), np.zeros((3, 13)))


def test_a_tenth_of_the_amplitude_is_20_decibels():
    noise = np.random.default_rng(3).normal(size=RATE).astype(np.float32)
    assert log_spectral_distance(noise / 10, noise, rate=RATE) == pytest.approx(20, abs=0.01)
    assert log_spectral_distance(noise, noise, rate=RATE) == 0
    # Of silence as much is taken for there as 80 dB below full scale.
    silence = np.zeros(100, np.float32)
    assert log_spectral_distance(silence, silence, rate=RATE) == 0


def test_spectral_distance_is_that_of_scipy_spectra():
    rng = np.random.default_rng(4)
    said, truth = rng.normal(size=(2, 1000)).astype(np.float32)
    powers = []
    for samples in (said, truth):
        # Density over energy: SciPy's scale of a unit-energy window, but for the rate and the one-sided doubling.
        _, _, density = scipy.signal.spectrogram(
            samples.astype(float), RATE, "hann", nperseg=200, noverlap=120, detrend=False, mode="psd"
        )
        density[1:-1] /= 2
        powers.append(10 * np.log10(density * RATE + 1e-8))
    slow = np.sqrt(((powers[0] - powers[1]) ** 2).mean(0)).mean()
    assert log_spectral_distance(said, truth, rate=RATE) == pytest.approx(slow, rel=1e-6)
