"""Log-mel against a float64 reference written out as loops, and resampling against the tone itself."""

import math

import numpy as np
import pytest
import scipy.fft

from mmjax.layers import spectrogram


def reference(samples, rate, window, hop, size, bands, low, high):
    """Log-mel by the definitions: every DFT term and every triangle on its own."""

    def mel(hertz):
        return 1127.010480 * math.log(1 + hertz / 700)  # HTK's own constant, 2595 / ln 10

    def hertz(mel):
        return 700 * (math.exp(mel / 1127.010480) - 1)

    edges = [hertz(mel(low) + (mel(high) - mel(low)) * i / (bands + 1)) for i in range(bands + 2)]
    frames = []
    for start in range(0, len(samples), hop):
        frame = [samples[start + n] if start + n < len(samples) else 0.0 for n in range(window)]
        hann = [math.sin(math.pi * n / window) ** 2 for n in range(window)]
        energy = sum(value**2 for value in hann)
        n = np.arange(window)
        powers = []
        for k in range(size // 2 + 1):
            term = np.sum(np.array(frame) * np.array(hann) * np.exp(-2j * np.pi * k * n / size))
            powers.append(abs(term) ** 2 / energy)
        row = []
        for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, power in enumerate(powers):
                frequency = k * rate / size
                if left < frequency <= centre:
                    total += power * (frequency - left) / (centre - left)
                elif centre < frequency < right:
                    total += power * (right - frequency) / (right - centre)
            row.append(math.log(total + 1e-8))
        frames.append(row)
    return np.array(frames)


@pytest.mark.parametrize(
    ("rate", "window", "hop", "bands", "count"),
    [(8000, 200, 80, 40, 1000), (16000, 641, 320, 64, 1601), (8000, 100, 160, 20, 999)],
)
def test_log_mel_is_the_definition(rate, window, hop, bands, count):
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(count) * np.linspace(1, 1e-3, count)).astype(np.float32)
    options = {"rate": rate, "window": window, "hop": hop, "bands": bands, "low": 50.0, "high": rate / 2}
    found = spectrogram.log_mel(samples, **options)
    expected = reference(samples.astype(np.float64), size=spectrogram.fft_size(window), **options)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_frames_of_a_long_recording_do_not_depend_on_each_other():
    """The product with the filters goes in blocks: no frame may land in another's place."""
    samples = np.random.default_rng(1).standard_normal(48000).astype(np.float32)
    options = {"rate": 16000, "window": 640, "hop": 320, "bands": 64, "low": 50.0, "high": 8000.0}
    whole = spectrogram.log_mel(samples, **options)
    assert whole.shape == (150, 64)
    for frame in (0, 11, 12, 77, 149):
        alone = spectrogram.log_mel(samples[frame * 320 : frame * 320 + 640], **options)[0]
        np.testing.assert_allclose(whole[frame], alone, atol=1e-4)


@pytest.mark.parametrize("tone", [200.0, 1000.0, 3000.0])
def test_a_tone_lies_in_the_band_around_it(tone):
    samples = np.sin(2 * np.pi * tone * np.arange(8000) / 8000).astype(np.float32)
    frames = spectrogram.log_mel(samples, rate=8000, window=200, hop=80, bands=40, low=50.0, high=4000.0)
    edges = spectrogram.mel_to_hertz(np.linspace(spectrogram.hertz_to_mel(50.0), spectrogram.hertz_to_mel(4000.0), 42))
    assert np.argmax(frames[50]) == np.argmin(np.abs(edges[1:-1] - tone))


def test_the_mel_scale():
    assert spectrogram.hertz_to_mel(1000.0) == pytest.approx(1000, abs=0.02)  # what the scale was made for
    hertz = np.linspace(0, 8000, 50)
    np.testing.assert_allclose(spectrogram.mel_to_hertz(spectrogram.hertz_to_mel(hertz)), hertz, atol=1e-9)


def test_fft_sizes_are_the_fast_ones():
    for window in range(1, 1200):
        assert spectrogram.fft_size(window) == scipy.fft.next_fast_len(window, real=True)


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 8000), (22050, 16000), (8000, 16000), (8000, 8000)])
def test_resampling_keeps_a_tone(rate, wanted):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    found = spectrogram.resample(tone(rate), rate, wanted)
    assert found.shape == (wanted,)
    assert found.dtype == np.float32
    inner = slice(wanted // 10, -wanted // 10)
    np.testing.assert_allclose(found[inner], tone(wanted)[inner], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    samples = np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(spectrogram.resample(samples, 16000, 8000)[400:-400]).max() < 0.01
