"""Recordings to spectrograms and waves, in every form and rate, and every kind of damage to a reason."""

import io
import struct

import chz
import numpy as np
import pytest
import soundfile

from mmjax.data.audio_inputs import SpectrogramInput, WaveformInput
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording
from tests.data.examples import damaged, samples


def wav(values: np.ndarray, rate=8000, subtype="FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, values, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def test_speech_sounds_as_it_was_read(shared_data):
    speech = SpectrogramInput(seconds=1.0, hop=0.02, bands=40)
    raw = (shared_data / "fsdd" / "recordings" / "3_nicolas_7.wav").read_bytes()
    values, mask = speech.read(raw, None)
    sound = speech.sound(values[mask])
    assert (sound.rate, sound.samples.shape) == (8000, (160 * mask.sum(),))
    assert 0.05 < np.abs(sound.samples).max() <= 1
    again, still = speech.read(sound, None)
    assert (still == mask).all()
    assert np.corrcoef(again[mask].ravel(), values[mask].ravel())[0, 1] > 0.98
    loud = speech.sound(np.full((20, 40), 50, np.float32)).samples
    assert np.isfinite(loud).all()
    assert np.abs(loud).max() <= 1


def test_speech_is_normalised_over_its_real_frames():
    speech = SpectrogramInput(seconds=1.0)
    values, mask = speech.read(Recording(samples(0.5), 8000), None)
    assert values.shape == (100, 40)
    assert mask.tolist() == [True] * 50 + [False] * 50
    assert values[:50].mean() == pytest.approx(0, abs=1e-4)
    assert values[:50].std() == pytest.approx(1, abs=5e-3)
    assert not values[50:].any()


def test_speech_forgets_loudness():
    quiet, loud = (SpectrogramInput().read(Recording(gain * samples(), 8000), None)[0] for gain in (1.0, 8.0))
    np.testing.assert_allclose(quiet, loud, atol=1e-2)


def test_speech_is_cut():
    long = samples(2.0)
    values, mask = SpectrogramInput(seconds=1.0).read(Recording(long, 8000), None)
    assert mask.all()
    np.testing.assert_array_equal(values, SpectrogramInput(seconds=1.0).read(Recording(long[:8000], 8000), None)[0])


def test_the_same_recording_in_every_form():
    integers = (samples() * 32768).astype(np.int16)
    expected, _ = SpectrogramInput().read(Recording(integers, 8000), None)
    floats = integers.astype(np.float32) / 32768
    forms = [
        Recording(floats, 8000),
        wav(floats),
        wav(floats, subtype="PCM_16"),
        wav(np.stack([floats, floats], 1)),  # stereo
        wav(np.stack([floats + floats[::-1] / 2, floats - floats[::-1] / 2], 1)),  # whose mean is the same
        wav(floats)[:4] + b"\xff\xff\xff\xff" + wav(floats)[8:],  # streamed: the size is not known
    ]
    for raw in forms:
        np.testing.assert_allclose(SpectrogramInput().read(raw, None)[0], expected, atol=1e-3)


def test_speech_of_another_rate_is_resampled():
    time = np.arange(16000) / 16000
    chirp = 0.1 * np.sin(2 * np.pi * (300 + 1000 * time) * time).astype(np.float32)
    expected, _ = SpectrogramInput().read(Recording(chirp[::2].copy(), 8000), None)
    values, mask = SpectrogramInput().read(Recording(chirp, 16000), None)
    assert mask.all()
    assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.99


def test_real_recordings(shared_data):
    """Digits of the Free Spoken Digit Dataset: what soundfile reads is what the input reads."""
    for path in sorted((shared_data / "fsdd" / "recordings").glob("*_theo_1.wav")):
        integers, rate = soundfile.read(path, dtype="int16")
        found, mask = SpectrogramInput().read(path.read_bytes(), None)
        np.testing.assert_allclose(found, SpectrogramInput().read(Recording(integers, rate), None)[0], atol=1e-4)
        assert mask.sum() == min(100, -(-len(integers) // 80))
        with pytest.raises(BadInput, match="truncated"):
            SpectrogramInput().read(path.read_bytes()[:-1000], None)


NAN, HUGE = samples(), samples()
NAN[100] = np.nan
HUGE[100] = 1e30


@damaged(
    (wav(samples())[:-1], "truncated"),
    (wav(samples())[:30], "truncated"),
    (wav(np.zeros(0, np.float32)), "empty"),
    (b"RIFF", "not a recording"),
    (b"", "not a recording"),
    (Recording(np.zeros(0, np.int16), 8000), "empty"),
    (Recording(NAN, 8000), "1 of 4000 samples"),
    (wav(NAN), "1 of 4000 samples"),
    (Recording(HUGE, 8000), "full scale"),
    (Recording(samples(), 0), "0 samples per second"),
    (Recording(np.zeros(10, np.int64), 8000), "int64"),
    (samples(), "float32"),
    (Recording(np.zeros((), np.float32), 8000), "empty"),
)
def test_bad_recordings(raw, reason):
    with pytest.raises(BadInput, match=reason):
        SpectrogramInput().read(raw, None)


def with_rate(content: bytes, rate: int) -> bytes:
    """A WAV whose header tells another rate."""
    return content[:24] + struct.pack("<I", rate) + content[28:]


def flac(frames: int, claimed: int) -> bytes:
    """A FLAC whose header tells another number of frames."""
    file = io.BytesIO()
    soundfile.write(file, samples(frames / 8000), 8000, format="FLAC")
    content = file.getvalue()
    return content[:22] + struct.pack(">I", claimed) + content[26:]


@pytest.mark.parametrize("node", [SpectrogramInput(), WaveformInput()], ids=["speech", "wave"])
def test_recordings_that_ask_for_too_much(node):
    """Each would take hundreds of gigabytes or minutes if its header were believed, or cut after it is resampled."""
    with pytest.raises(BadInput, match="2147483647 samples per second"):
        node.read(with_rate(wav(samples()), 2**31 - 1), None)
    with pytest.raises(BadInput, match="not a recording"):
        node.read(flac(4000, 2**32 - 2**28), None)
    assert node.read(with_rate(wav(np.tile(samples(), 250)), 7), None)[1].all()
    assert node.read(Recording(np.zeros(10**6, np.float32), 999_983), None)[1].all()
    with pytest.raises(BadInput, match=r"4000 samples .* and max_samples is 3999"):
        chz.replace(node, max_samples=3999).read(wav(samples()), None)


def test_what_comes_after_the_cut_changes_nothing():
    long = samples(3.0, 16000)
    for node in (SpectrogramInput(seconds=0.5), WaveformInput(seconds=0.5)):
        expected = node.read(Recording(long, 16000), None)[0]
        longer = np.concatenate([long, np.zeros(70 * 16000, np.float32), [np.nan]]).astype(np.float32)
        np.testing.assert_array_equal(node.read(Recording(longer, 16000), None)[0], expected)
        np.testing.assert_array_equal(node.read(wav(longer, 16000), None)[0], expected)


def test_silence_is_no_error():
    values, mask = SpectrogramInput().read(Recording(np.zeros(8000, np.int16), 8000), None)
    assert mask.all()
    assert np.abs(values).max() < 1e-2


def test_waves_have_one_loudness():
    raw = samples(0.5)
    quiet, loud = (WaveformInput().read(Recording(gain * raw, 8000), None) for gain in (0.5, 8.0))
    np.testing.assert_allclose(quiet[0], loud[0], atol=2e-3)
    assert quiet[0].shape == (8000,)
    assert quiet[1].tolist() == [True] * 4000 + [False] * 4000
    assert np.sqrt(np.mean(quiet[0][:4000] ** 2)) == pytest.approx(0.1, rel=5e-3)
    assert np.corrcoef(quiet[0][:4000], raw)[0, 1] > 0.9999
    assert not quiet[0][4000:].any()


def test_waves_are_cut_and_resampled():
    time = np.arange(16000) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    values, mask = WaveformInput(seconds=0.5).read(Recording(tone, 16000), None)
    assert mask.all()
    inside = slice(100, -100)
    expected = 0.1 * np.sqrt(2) * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    np.testing.assert_allclose(values[inside], expected[inside], atol=2e-3)
    assert not WaveformInput().read(Recording(np.zeros(800, np.int16), 8000), None)[0].any()


def test_a_wave_too_loud_for_a_spectrum_is_a_wave():
    """Its loudness goes before anything is squared in 32 bits."""
    values, _ = WaveformInput().read(Recording(HUGE, 8000), None)
    assert np.isfinite(values).all()
