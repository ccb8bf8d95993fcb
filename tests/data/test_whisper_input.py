"""Whisper's log-mel frames: padding, what cannot be read, and sounds; test_audio.py has them against `transformers`."""

import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording
from mmjax.data.whisper_input import WhisperInput
from mmjax.layers import spectrogram
from mmjax.types import Spectrogram


@pytest.fixture(scope="module")
def recording(shared_data) -> bytes:
    return (shared_data / "fsdd" / "recordings" / "7_jackson_3.wav").read_bytes()


def test_recordings_are_padded_with_silence_and_cut(recording):
    """All frames are real, and those of padding are silence."""
    assert WhisperInput().feature == Spectrogram(3000, 80, 0.01)
    node = WhisperInput(seconds=1.0, bands=128)
    values, mask = node.read(recording, None)
    assert values.shape == node.feature.shape == (100, 128)
    assert values.dtype == np.float32
    assert mask.all()
    assert node.count_positions(recording) == 100
    assert values.max() == pytest.approx(values.min() + 2)
    assert (values[-20:] == values.min()).all()
    noise = (0.1 * np.random.default_rng(0).normal(size=32_000)).astype(np.float32)
    long, cut = (node.read(Recording(noise[:count], 16_000), None)[0] for count in (32_000, 16_000))
    np.testing.assert_array_equal(long, cut)
    quiet = node.read(Recording(np.zeros(800, np.int16), 8000), None)[0]
    np.testing.assert_allclose(quiet, -1.5, rtol=1e-6)


def test_bands_are_of_unit_area_and_begin_evenly():
    filters = spectrogram.slaney_filters(16_000, 16_000, 80)  # a bin a hertz
    np.testing.assert_allclose(filters.sum(0), 1, atol=1e-3)
    peaks = filters.argmax(0)
    assert np.abs(np.diff(peaks[:20]) - np.diff(peaks[:20]).mean()).max() <= 1
    ratios = peaks[41:] / peaks[40:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=2e-3)


def test_what_cannot_be_read():
    huge = np.full(800, 1e30, np.float32)
    with pytest.raises(BadInput, match="times full scale"):
        WhisperInput(seconds=1.0).read(Recording(huge, 8000), None)
    assert WhisperInput().count_positions(b"") == 0


def test_frames_become_the_sound_that_they_are_of(recording):
    node = WhisperInput(seconds=1.0)
    values, mask = node.read(recording, None)
    sound = node.to_raw({"values": values, "mask": mask})
    assert sound.rate == 16_000
    assert np.abs(sound.samples).max() <= 1
    found = node.read(sound, None)[0]
    assert np.corrcoef(found.ravel(), values.ravel())[0, 1] > 0.98
    samples = np.arange(16_000, dtype=np.float32)
    np.testing.assert_array_equal(node.to_raw({"values": values, "samples": samples}).samples, samples)


def test_its_frames_are_no_others():
    """A vocoder of one kind of frames is not for another."""
    same = SpectrogramInput(rate=16_000, window=0.025, hop=0.01, bands=80, low=0.0)
    assert same.feature.bands == WhisperInput(seconds=1.0).feature.bands
    assert same.scale != WhisperInput().scale


@pytest.mark.parametrize("settings", [{"rate": 8000}, {"seconds": 0.01}, {"bands": 0}, {"bands": 10**9}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match="must"):
        WhisperInput(**settings)
