"""How one raw field becomes arrays of fixed shape: pictures, sentences, speech, waves, labels and quantities."""

import abc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz
import numpy as np
from jaxtyping import Float

from mmjax.data import clean, griffin_lim, spectrogram
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording
from mmjax.data.tokenize import END, Bytes, Corpus, Tokenizer
from mmjax.fields import OPERATIONAL
from mmjax.layers.mel import mel_filters
from mmjax.types import Feature, Image, Label, Spectrogram, Text, Vector, Waveform

# What the samples of a waveform come to: 20 dB below full scale leaves room for the peaks of speech.
LEVEL = 0.1
# Of recordings: samples a second, as the highest rate in use; seconds, a day; and of spectra.
HIGHEST_RATE, LONGEST, LARGEST_WINDOW, MOST_BANDS = 768_000, 86_400, 2**16, 1024

__all__ = [
    "BadInput",
    "ImageInput",
    "Input",
    "LabelInput",
    "SpectrogramInput",
    "TextInput",
    "VectorInput",
    "WaveformInput",
]

# Seconds of a recording that are read beyond those that are used. Augmentation and resampling look there; what an hour
# of sound holds after that need not even be decoded.
BEYOND = 60.0

# Of the log-mel frames of FSDD's recordings, each recording by itself: medians. No signal within full scale is LOUDEST.
USUAL_MEAN, USUAL_DEVIATION, LOUDEST = -10.2, 3.45, 8.0


@chz.chz
class Input(abc.ABC):
    """How one raw field becomes a feature."""

    field: str | None = chz.field(default=None, doc="the raw field's name if it differs from the feature's")

    @property
    @abc.abstractmethod
    def feature(self) -> Feature:
        """What the arrays look like, for building models."""

    @property
    def random(self) -> bool:
        """Whether `read` uses its random numbers at all."""
        return False

    @abc.abstractmethod
    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The values and the mask of one example (no batch dimension); BadInput where the raw value cannot be used.

        `rng` augments, None does not. An image has no mask.
        """

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "Input":
        """This input with whatever it must learn from the training data; see `Data.fit_tokenizers`."""
        return self

    @property
    def learned(self) -> Path | None:
        """The file of what `fit_tokenizers` learned; None where there is nothing to learn."""
        return None


@chz.chz
class ImageInput(Input):
    """A picture as Float[size width channels] in [0, 1], resized (not cropped)."""

    size: int = chz.field(doc="height, pixels")
    width: int | None = chz.field(default=None, doc="width, pixels; None: the height")
    channels: int = chz.field(default=3, doc="1 is grey, 3 is RGB")
    augment: ImageAugment = chz.field(default=ImageAugment(), doc="random changes in training")
    max_pixels: int = chz.field(
        default=clean.MAX_PIXELS, doc="a file of a larger picture is not decoded but bad input", metadata=OPERATIONAL
    )

    @chz.validate
    def _valid(self) -> None:
        if min(self._shape) < 1:
            raise ValueError("size and width must be 1 or more")
        if self.max_pixels < 1:
            raise ValueError("max_pixels must be 1 or more")
        if self.channels not in (1, 3):
            raise ValueError("channels must be 1 or 3")

    @property
    def feature(self) -> Image:
        return Image(*self._shape, self.channels)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.size, self.size if self.width is None else self.width

    @property
    def random(self) -> bool:
        return self.augment.active

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, None]:
        cv2 = clean.opencv()
        height, width = self._shape
        with clean.refusing("the picture cannot be resized"):
            pixels = clean.clean_picture(raw, self.channels, max(self._shape), self.max_pixels)
            if pixels.shape[:2] != (height, width):
                # Averaging over areas when shrinking is what keeps fine structure from turning into noise.
                how = cv2.INTER_AREA if pixels.shape[0] > height and pixels.shape[1] > width else cv2.INTER_LINEAR
                pixels = cv2.resize(pixels, (width, height), interpolation=how)
        pixels = pixels.reshape(height, width, self.channels)
        picture = np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)
        return (picture if rng is None else self.augment(picture, rng)), None


@chz.chz
class TextInput(Input):
    """A text as Int[length] token ids; a longer one is cut and still ends with the end token."""

    length: int = chz.field(doc="most tokens, the end included")
    tokenizer: Tokenizer = chz.field(default=Bytes(), doc="how text becomes token ids")

    @chz.validate
    def _valid(self) -> None:
        if self.length < 2:
            raise ValueError("length must be 2 or more, for a token and the end")

    @property
    def feature(self) -> Text:
        return Text(self.length, self.tokenizer.size)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        ids = self.tokenizer.encode(clean.clean_text(raw))
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], END]
        values = np.zeros(self.length, np.int32)
        values[: len(ids)] = ids
        return values, np.arange(self.length) < len(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(np.asarray(ids).tolist())

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "TextInput":
        return chz.replace(self, tokenizer=self.tokenizer.fit_tokenizers(corpus, stored))

    @property
    def learned(self) -> Path | None:
        return self.tokenizer.learned


@chz.chz
class SpectrogramInput(Input):
    """A recording as log-mel frames Float[T M], T = ceil(seconds / hop), cut or padded at the end.

    The real frames of a recording have mean 0 and variance 1 taken over all of them and all bands, so loudness is gone
    and the shape of the spectrum stays; the others are 0 and masked. (On noisy digits this does as well as one fixed
    map, and normalising every band of a recording by itself does much worse.)
    """

    rate: int = chz.field(
        default=8000,
        doc="samples a second; recordings of another rate are resampled, which costs more than all else here",
    )
    seconds: float = chz.field(default=1.0, doc="longest recording; the rest is cut")
    window: float = chz.field(default=0.025, doc="length of a frame, seconds")
    hop: float = chz.field(default=0.010, doc="from the start of a frame to that of the next, seconds")
    bands: int = chz.field(default=40, doc="mel bands")
    low: float = chz.field(default=50.0, doc="where the lowest band begins, Hz")
    high: float | None = chz.field(default=None, doc="where the highest band ends, Hz; half the rate if not given")
    augment: SpectrogramAugment = chz.field(default=SpectrogramAugment(), doc="random changes in training")
    max_samples: int = chz.field(
        default=clean.MAX_SAMPLES,
        doc="a file with more samples, in all channels, before it is cut is not decoded but bad input",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _valid(self) -> None:
        if not 1 <= self.rate <= HIGHEST_RATE:
            raise ValueError(f"rate must lie between 1 and {HIGHEST_RATE}")
        if self.seconds > LONGEST:
            raise ValueError(f"seconds must be at most {LONGEST}")
        if not 2 <= self._window <= LARGEST_WINDOW:
            raise ValueError(f"window must hold 2 to {LARGEST_WINDOW} samples")
        if self.max_samples < 1:
            raise ValueError("max_samples must be 1 or more")
        if self._hop < 1:
            raise ValueError("hop must be a sample or more")
        if self._samples < self._hop:
            raise ValueError("seconds must hold a hop or more")
        if not 0 <= self.low < self._high <= self.rate / 2:
            raise ValueError(f"high must lie above low and not above half the rate, {self.rate / 2} Hz")
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
    def scale(self) -> dict[str, int | float]:
        """What its frames are, whatever their number: spectra of equal ones can be put in each other's place."""
        lengths = {"rate": self.rate, "window": self._window, "hop": self._hop}
        return {**lengths, "bands": self.bands, "low": self.low, "high": self._high}

    @property
    def random(self) -> bool:
        return self.augment.active

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        samples = _read_samples(raw, self.rate, self.seconds + self.augment.shift, self.max_samples)
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

    def sound(self, frames: Float[np.ndarray, "T M"]) -> Recording:
        """What frames, as `read` gives them or a model makes them, sound like, by Griffin-Lim; at most full scale.

        Their loudness and contrast are those that spoken digits usually have: a recording's own are gone.
        """
        log_mel = np.minimum(USUAL_MEAN + USUAL_DEVIATION * frames.astype(np.float64), LOUDEST)
        samples = griffin_lim.waveform(log_mel, **self._settings)
        return Recording(samples / max(1.0, float(np.abs(samples).max(initial=0))), self.rate)

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return spectrogram.log_mel(samples, **self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        """What `spectrogram.log_mel` and its inverse are told."""
        return {
            "rate": self.rate,
            "window": self._window,
            "hop": self._hop,
            "bands": self.bands,
            "low": float(self.low),
            "high": self._high,
        }


@chz.chz
class WaveformInput(Input):
    """A recording as samples Float[T], T = seconds * rate, cut or padded at the end.

    They are scaled to a root mean square of `LEVEL`, so loudness is gone as it is in `SpectrogramInput`.
    """

    rate: int = chz.field(default=8000, doc="samples a second; recordings of another rate are resampled")
    seconds: float = chz.field(default=1.0, doc="longest recording; the rest is cut")
    max_samples: int = chz.field(
        default=clean.MAX_SAMPLES,
        doc="a file with more samples, in all channels, before it is cut is not decoded but bad input",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _valid(self) -> None:
        if not 1 <= self.rate <= HIGHEST_RATE:
            raise ValueError(f"rate must lie between 1 and {HIGHEST_RATE}")
        if self.seconds > LONGEST:
            raise ValueError(f"seconds must be at most {LONGEST}")
        if self.max_samples < 1:
            raise ValueError("max_samples must be 1 or more")
        if self.feature.samples < 1:
            raise ValueError("seconds must hold a sample or more")

    @property
    def feature(self) -> Waveform:
        return Waveform(round(self.seconds * self.rate), self.rate)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        length = self.feature.samples
        samples = _read_samples(raw, self.rate, self.seconds, self.max_samples)[:length]
        loudness = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        values = np.zeros(length, np.float32)
        values[: len(samples)] = samples * (LEVEL / (loudness + 1e-4))
        if not np.isfinite(values).all():
            raise BadInput(f"samples of up to {np.abs(samples).max():.1g} times full scale")
        return values, np.arange(length) < len(samples)


def _read_samples(raw: Any, rate: int, seconds: float, max_samples: int) -> Float[np.ndarray, "T"]:
    """A recording's samples at a rate: the first `seconds` at least, and no more than `BEYOND` after them."""
    with clean.refusing("the recording cannot be resampled"):
        return spectrogram.resample(*clean.clean_recording(raw, seconds + BEYOND, max_samples), rate)


@chz.chz
class LabelInput(Input):
    """Answers from `names` as Int[slots]: one, or as many as the example has, the other slots masked.

    The raw field holds places in `names`, or the names themselves.
    """

    names: tuple[str, ...] = chz.field(doc="the classes")
    slots: int = chz.field(default=1, doc="most answers of one example")

    @chz.validate
    def _valid(self) -> None:
        if not self.names:
            raise ValueError("names must hold one or more")
        if self.slots < 1:
            raise ValueError("slots must be 1 or more")

    @property
    def feature(self) -> Label:
        return Label(self.names, self.slots)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        labels = clean.clean_labels(raw, self.names, self.slots)
        values = np.zeros(self.slots, np.int32)
        values[: len(labels)] = labels
        return values, np.arange(self.slots) < len(labels)


@chz.chz
class VectorInput(Input):
    """Vectors of `size` numbers as Float[slots size]: one, or as many as the example has, the other slots masked."""

    size: int = chz.field(doc="numbers in a vector")
    slots: int = chz.field(default=1, doc="most vectors of one example")

    @chz.validate
    def _valid(self) -> None:
        if self.size < 1:
            raise ValueError("size must be 1 or more")
        if self.slots < 1:
            raise ValueError("slots must be 1 or more")

    @property
    def feature(self) -> Vector:
        return Vector(self.size, self.slots)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        vectors = clean.clean_quantities(raw, self.size, self.slots)
        values = np.zeros((self.slots, self.size), np.float32)
        values[: len(vectors)] = vectors
        return values, np.arange(self.slots) < len(vectors)
