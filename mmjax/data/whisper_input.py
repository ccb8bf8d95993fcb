"""The input of Whisper: log-mel frames of a recording that is padded with silence."""

import math
from collections.abc import Mapping
from typing import Any

import chz
import numpy as np
from jaxtyping import Float

from mmjax.data import griffin_lim
from mmjax.data.audio_inputs import MOST_BANDS, AudioInput, real_frames, within_full_scale
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording
from mmjax.layers import spectrogram
from mmjax.layers.spectrogram import WHISPER_HOP, WHISPER_RATE, WHISPER_WINDOW
from mmjax.types import Spectrogram


@chz.chz
class WhisperInput(AudioInput):
    """A recording as Whisper's log-mel frames Float[T M], one every 10 ms (Radford et al. 2023).

    It is cut, or padded with silence, to `seconds`. All frames are real, as Whisper has no mask.
    """

    rate: int = chz.field(default=WHISPER_RATE, doc="samples per second, which must be 16000")
    seconds: float = chz.field(default=30.0, doc="length to which recordings are cut or padded")
    bands: int = chz.field(default=80, doc="mel bands; large-v3 has 128")

    @chz.validate
    def _valid(self) -> None:
        if self.rate != WHISPER_RATE:
            raise ValueError(f"rate must be {WHISPER_RATE}")
        if self.feature.frames < 2:
            raise ValueError("seconds must be at least 0.02")
        if not 1 <= self.bands <= MOST_BANDS:
            raise ValueError(f"bands must be 1 to {MOST_BANDS}")

    @property
    def feature(self) -> Spectrogram:
        return Spectrogram(round(self.seconds * WHISPER_RATE) // WHISPER_HOP, self.bands, WHISPER_HOP / WHISPER_RATE)

    @property
    def scale(self) -> dict[str, Any]:
        return {
            "rate": WHISPER_RATE,
            "window": WHISPER_WINDOW,
            "hop": WHISPER_HOP,
            "bands": self.bands,
            "mel": "slaney",
        }

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros(self.feature.frames * WHISPER_HOP, np.float32)
        samples = self._read_samples(raw, self.seconds)[: padded.size]
        padded[: samples.size] = samples
        with np.errstate(over="ignore", invalid="ignore"):
            frames = spectrogram.whisper_log_mel(padded, self.bands)
        if not np.isfinite(frames).all():
            raise BadInput(f"samples of up to {np.abs(samples).max():.1g} times full scale")
        return frames, np.ones(len(frames), bool)

    def count_positions(self, raw: Any) -> int:
        return self.feature.frames if self._count_samples(raw, self.seconds) else 0

    def to_raw(self, row: Mapping[str, np.ndarray]) -> Recording:
        """By Griffin-Lim, where there are no samples."""
        if "samples" in row:
            return Recording(row["samples"], self.rate)
        return self._sound(real_frames(row).astype(np.float64))

    def _sound(self, frames: Float[np.ndarray, "T M"]) -> Recording:
        filters = spectrogram.slaney_filters(WHISPER_RATE, WHISPER_WINDOW, self.bands)
        energy = np.square(spectrogram.hann(WHISPER_WINDOW)).sum()
        log_mel = (4 * frames - 4) * math.log(10) - math.log(energy)
        samples = griffin_lim.mel_to_waveform(log_mel, filters, window=WHISPER_WINDOW, hop=WHISPER_HOP)
        # Whisper's frames are centred on their times, those of Griffin-Lim begin there.
        return within_full_scale(samples[WHISPER_WINDOW // 2 :], self.rate)
