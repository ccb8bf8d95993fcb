"""Waveforms from log-mel spectrograms of real recordings, judged by SciPy's transform and by what they were made of."""

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import soundfile

from mmjax.data import griffin_lim
from mmjax.layers import spectrogram
from mmjax.layers.spectrogram import mel_filters

SETTINGS = {"rate": 8000, "window": 200, "bands": 40, "low": 50.0, "high": 4000.0}
FILTERS = mel_filters(8000, 200, 40, 50.0, 4000.0)


@pytest.fixture(scope="module", params=["0_george_0", "7_jackson_3", "6_theo_10"])
def recording(request, shared_data) -> np.ndarray:
    samples, rate = soundfile.read(shared_data / "fsdd" / "recordings" / f"{request.param}.wav", dtype="float32")
    assert rate == 8000
    return samples


def convergence(found: np.ndarray, truth: np.ndarray) -> float:
    """Spectral convergence: how far magnitudes are from the true ones, of whole frames, as a share of these."""

    def magnitudes(samples):
        frames = {"window": "hann", "nperseg": 200, "noverlap": 150, "boundary": None, "padded": False}
        return np.abs(scipy.signal.stft(samples[: truth.size], **frames)[2])

    return np.linalg.norm(magnitudes(found) - magnitudes(truth)) / np.linalg.norm(magnitudes(truth))


def test_the_transform_is_that_of_the_log_mel(recording):
    spectra = griffin_lim.stft(recording, window=200, hop=80, size=200)
    mel = np.log(np.abs(spectra) ** 2 @ FILTERS + spectrogram.FLOOR)
    np.testing.assert_allclose(mel, spectrogram.log_mel(recording, hop=80, **SETTINGS), atol=2e-3)


@pytest.mark.parametrize(("window", "hop"), [(200, 50), (200, 63), (77, 10)])
def test_the_inverse_undoes_the_transform(window, hop):
    samples = np.random.default_rng(0).normal(size=12 * window)
    spectra = griffin_lim.stft(samples, window=window, hop=hop, size=spectrogram.fft_size(window))
    found = griffin_lim.istft(spectra, window, hop)
    assert found.shape == (len(spectra) * hop,)
    told = window // 3  # where windows have risen from zero
    np.testing.assert_allclose(found[told : samples.size], samples[told:], atol=1e-6)
    np.testing.assert_allclose(found[samples.size :], 0, atol=1e-6)


def test_phases_are_found_and_sooner_with_momentum(recording):
    magnitudes = np.abs(griffin_lim.stft(recording, window=200, hop=50, size=200))
    found = griffin_lim.griffin_lim(magnitudes, window=200, hop=50)
    plain = griffin_lim.griffin_lim(magnitudes, window=200, hop=50, momentum=0.0)
    begun = griffin_lim.griffin_lim(magnitudes, window=200, hop=50, iterations=0)
    assert convergence(found, recording) < 0.06
    assert convergence(found, recording) < 0.7 * convergence(plain, recording) < 0.3 * convergence(begun, recording)
    again = griffin_lim.griffin_lim(magnitudes, window=200, hop=50)
    assert (found == again).all()


def test_powers_fill_the_bands(recording):
    mel = np.exp(spectrogram.log_mel(recording, hop=80, **SETTINGS)).astype(np.float64)
    power = griffin_lim.mel_to_powers(mel, FILTERS)
    assert power.shape == (len(mel), 101)
    assert (power >= 0).all()
    assert (power[:, FILTERS.sum(1) == 0] == 0).all()
    # There are powers with exactly these bands, as least squares tell; these nearly have them.
    for frame in mel[::20]:
        assert scipy.optimize.nnls(FILTERS.T.astype(np.float64), frame)[1] < 1e-3 * np.linalg.norm(frame)
    error = np.abs(np.log(power @ FILTERS / mel))
    assert np.percentile(error, 99) < 0.02
    assert error.max() < 0.2
    assert (griffin_lim.mel_to_powers(np.zeros((1, 40)), FILTERS) < 1e-9).all()


@pytest.mark.parametrize("hop", [80, 100, 160])  # the last has frames that hardly overlap
def test_a_recording_comes_back_from_its_log_mel(recording, hop):
    asked = spectrogram.log_mel(recording, hop=hop, **SETTINGS)
    samples = griffin_lim.mel_to_waveform(asked, FILTERS, window=200, hop=hop)
    assert samples.dtype == np.float32
    assert samples.shape == (len(asked) * hop,)
    found = spectrogram.log_mel(samples, hop=hop, **SETTINGS)
    assert np.abs(found - asked).mean() < 0.3  # nats; between two of the recordings it is about 3
    assert np.corrcoef(found.ravel(), asked.ravel())[0, 1] > 0.99
    shuffled = np.abs(found - np.roll(asked, len(asked) // 2, 0)).mean()
    assert shuffled > 1


def test_one_frame_and_silence():
    for count in (1, 5):
        silence = np.full((count, 40), np.log(spectrogram.FLOOR))
        samples = griffin_lim.mel_to_waveform(silence, FILTERS, window=200, hop=160)
        assert samples.shape == (160 * count,)
        assert np.abs(samples).max() < 1e-4
