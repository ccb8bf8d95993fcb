"""Inputs of audio: recordings to spectrograms and waveforms of fixed length."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import chz
import numpy as np
from jaxtyping import Float

from mmjax.data import clean, griffin_lim
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.clean import BadInput
from mmjax.data.inputs import Input
from mmjax.data.sources.base import Recording
from mmjax.fields import OPERATIONAL
from mmjax.layers import spectrogram
from mmjax.layers.spectrogram import mel_filters
from mmjax.types import Spectrogram, Waveform

# What the samples of a waveform come to: 20 dB below full scale leaves room for the peaks of speech.
LEVEL = 0.1
# Of recordings: samples a second, as the highest rate in use; seconds, a day; and of spectra.
HIGHEST_RATE, LONGEST, LARGEST_WINDOW, MOST_BANDS = 768_000, 86_400, 2**16, 1024

# Seconds of a recording that are read beyond those that are used. Augmentation and resampling look there; what an hour
# of sound holds after that need not even be decoded.
BEYOND = 60.0

# Of the log-mel frames of FSDD's recordings, each recording by itself: medians. No signal within full scale is LOUDEST.
USUAL_MEAN, USUAL_DEVIATION, LOUDEST = -10.2, 3.45, 8.0


@chz.chz
class AudioInput(Input):
    """The settings shared by inputs that read recordings."""

    rate: int = chz.field(
        default=8000, doc="samples per second; recordings at other rates are resampled, which is slow"
    )
    seconds: float = chz.field(default=1.0, doc="longest recording; the rest is cut")
    max_samples: int = chz.field(
        default=clean.MAX_SAMPLES,
        doc="a file with more samples, in all channels before cutting, is bad input and not decoded",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _valid_recording(self) -> None:
        if not 1 <= self.rate <= HIGHEST_RATE:
            raise ValueError(f"rate must lie between 1 and {HIGHEST_RATE}")
        if self.seconds > LONGEST:
            raise ValueError(f"seconds must be at most {LONGEST}")
        if self.max_samples < 1:
            raise ValueError("max_samples must be 1 or more")

    def _read_samples(self, raw: Any, seconds: float) -> Float[np.ndarray, "T"]:
        """A recording's samples at the rate: at least the first `seconds`, at most `BEYOND` more."""
        with clean.bad_input_on_error("the recording cannot be resampled"):
            return spectrogram.resample(*clean.decode_audio(raw, seconds + BEYOND, self.max_samples), self.rate)

    def _count_samples(self, raw: Any, seconds: float) -> int:
        """How many samples `_read_samples` returns at most; 0 where it cannot read the recording."""
        with contextlib.suppress(BadInput):
            return spectrogram.resampled_length(*clean.audio_length(raw, seconds + BEYOND, self.max_samples), self.rate)
        return 0


@chz.chz
class SpectrogramInput(AudioInput):
    """A recording as log-mel frames Float[T M], T = ceil(seconds / hop), cut or padded at the end.

    The real frames of a recording are normalised to mean 0 and variance 1 over all frames and bands, so loudness is
    removed and the shape of the spectrum stays; the others are 0 and masked. (On noisy digits this does as well as one
    fixed normalisation, and normalising every band of a recording separately does much worse.)
    """

    window: float = chz.field(default=0.025, doc="length of a frame, seconds")
    hop: float = chz.field(default=0.010, doc="distance between the starts of frames, seconds")
    bands: int = chz.field(default=40, doc="mel bands")
    low: float = chz.field(default=50.0, doc="lower edge of the lowest band, Hz")
    high: float | None = chz.field(default=None, doc="upper edge of the highest band, Hz; None: half the rate")
    augment: SpectrogramAugment = chz.field(default=SpectrogramAugment(), doc="random changes in training")

    @chz.validate
    def _valid(self) -> None:
        if not 2 <= self._window <= LARGEST_WINDOW:
            raise ValueError(f"window must be 2 to {LARGEST_WINDOW} samples long")
        if self._hop < 1:
            raise ValueError("hop must be at least one sample")
        if self._samples < self._hop:
            raise ValueError("seconds must be at least one hop")
        if not 0 <= self.low < self._high <= self.rate / 2:
            raise ValueError(f"high must be above low and at most half the rate, {self.rate / 2} Hz")
        if not 1 <= self.bands <= MOST_BANDS or not self._filters.any(axis=0).all():
            raise ValueError(
                f"bands must be 1 to {MOST_BANDS}, and so few that each holds a frequency of {self.window} s"
            )

    @property
    def _high(self) -> float:
        return self.rate / 2 if self.high is None else float(self.high)

    @property
    def _samples(self) -> int:
        return round(self.seconds * self.rate)

    @property
    def _hop(self) -> int:
        return round(self.hop * self.rate)

    @property
    def _window(self) -> int:
        return round(self.window * self.rate)

    @property
    def _filters(self) -> np.ndarray:
        size = spectrogram.fft_size(self._window)
        return mel_filters(self.rate, size, self.bands, float(self.low), self._high)

    @property
    def feature(self) -> Spectrogram:
        return Spectrogram(math.ceil(self._samples / self._hop), self.bands, self._hop / self.rate)

    @property
    def scale(self) -> dict[str, Any]:
        lengths = {"rate": self.rate, "window": self._window, "hop": self._hop}
        return {**lengths, "bands": self.bands, "low": float(self.low), "high": self._high}

    @property
    def is_random(self) -> bool:
        return self.augment.active

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        samples = self._read_samples(raw, self.seconds + self.augment.shift)
        if rng is not None:
            samples = self.augment.samples(samples, self.rate, rng)
        frames = self._log_mel(samples[: self._samples])
        if not np.isfinite(frames).all():
            raise BadInput(f"samples of up to {np.abs(samples).max():.1g} times full scale")
        frames = (frames - frames.mean()) / (frames.std() + 1e-3)
        if rng is not None:
            frames = self.augment.spectrum(frames, rng)
        shape = self.feature
        values = np.zeros((shape.frames, shape.bands), np.float32)
        values[: len(frames)] = frames
        return values, np.arange(shape.frames) < len(frames)

    def count_positions(self, raw: Any) -> int:
        count = self._count_samples(raw, self.seconds + self.augment.shift)
        shifted = count + round(self.augment.shift * self.rate) if count else 0
        return math.ceil(min(shifted, self._samples) / self._hop)

    def to_raw(self, row: Mapping[str, np.ndarray]) -> Recording:
        """By Griffin-Lim, where there are no samples."""
        frames = real_frames(row)
        if "samples" not in row:
            return self.sound(frames)
        return Recording(row["samples"][: len(frames) * self._hop], self.rate)

    def sound(self, frames: Float[np.ndarray, "T M"]) -> Recording:
        """The sound of frames from `read` or from a model, by Griffin-Lim; at most full scale.

        Loudness and contrast are those typical of spoken digits, because normalisation removed the recording's own.
        """
        log_mel = np.minimum(USUAL_MEAN + USUAL_DEVIATION * frames.astype(np.float64), LOUDEST)
        samples = griffin_lim.mel_to_waveform(log_mel, self._filters, window=self._window, hop=self._hop)
        return within_full_scale(samples, self.rate)

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return spectrogram.log_mel(samples, **self.scale)


@chz.chz
class WaveformInput(AudioInput):
    """A recording as samples Float[T], T = seconds * rate, cut or padded at the end.

    By default samples are scaled to a root mean square of `LEVEL`, so loudness is removed as in `SpectrogramInput`.
    """

    normalize: Literal["rms", "standard", "none"] = chz.field(
        default="rms",
        doc="rms: to a root mean square of 0.1; standard: to mean 0 and variance 1, as wav2vec 2.0; none: as it is",
    )

    @chz.validate
    def _valid(self) -> None:
        if self.feature.samples < 1:
            raise ValueError("seconds must be at least one sample")

    @property
    def feature(self) -> Waveform:
        return Waveform(round(self.seconds * self.rate), self.rate)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        length = self.feature.samples
        samples = self._read_samples(raw, self.seconds)[:length]
        values = np.zeros(length, np.float32)
        values[: len(samples)] = self._normalize(samples)
        if not np.isfinite(values).all():
            raise BadInput(f"samples of up to {np.abs(samples).max():.1g} times full scale")
        return values, np.arange(length) < len(samples)

    def _normalize(self, samples: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T"]:
        if self.normalize == "rms":
            loudness = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
            return samples * (LEVEL / (loudness + 1e-4))
        if self.normalize == "standard":
            wide = samples.astype(np.float64)
            return (wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)
        return samples

    def count_positions(self, raw: Any) -> int:
        return min(self._count_samples(raw, self.seconds), self.feature.samples)

    def to_raw(self, row: Mapping[str, np.ndarray]) -> Recording:
        return Recording(row["values"][row["mask"]], self.rate)


def within_full_scale(samples: Float[np.ndarray, "S"], rate: int) -> Recording:
    """A recording of samples, made quieter where they are above full scale."""
    return Recording(samples / max(1.0, float(np.abs(samples).max(initial=0))), rate)


def real_frames(row: Mapping[str, np.ndarray]) -> Float[np.ndarray, "T M"]:
    """The real frames of a spectrogram, one at least: no files are empty."""
    frames = row["values"][row["mask"]] if "mask" in row else row["values"]
    return frames if len(frames) else np.zeros((1, frames.shape[1]), np.float32)
