"""digit_strings: real handwritten and spoken digits concatenated to numbers, with their words."""

from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.base import Recording, Records, Source
from mmjax.data.sources.fsdd import RATE
from mmjax.errors import UserError

VERSION = "1.0.0"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOST_DIGITS = 4
SIDE = 28
SPLITS = ("train", "validation", "test")
GAP = (0.05, 0.15)  # seconds between two digits, at least and at most
# The loudest sample of every spoken digit, as a share of full scale: recordings differ a hundredfold.
PEAK = 0.5


@chz.chz
class DigitStrings(Source):
    """Numbers of one to four digits, each digit an MNIST image and an FSDD recording of av_digits.

    Raw fields: `image` uint8[28 112 1], left-aligned digits on black; `speech` at 8 kHz, with short silences between
    digits; `text`, their words; `digits`, a label per digit. The seed determines everything. The splits are those of
    av_digits (as published): they share no image and no recording.
    """

    seed: int = chz.field(default=0, doc="seed of all data")
    train: int = chz.field(default=65536, doc="examples of the train split")
    validation: int = chz.field(default=1024, doc="examples of the validation split")
    test: int = chz.field(default=2048, doc="examples of the test split")

    @chz.validate
    def _check(self) -> None:
        if self.seed < 0 or min(self.train, self.validation, self.test) < 1:
            raise UserError(f"digit_strings needs a seed of 0 or more and at least 1 example a split, and got {self}")

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def open(self, data_dir: str, split: str) -> Records:
        return DigitStringRecords(self, split, AvDigits(noise="clean").open(data_dir, split))

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return AvDigits(noise="clean").prepare(data_dir, manual_dir)


class DigitStringRecords:
    """One split of digit_strings, assembled from single digits."""

    def __init__(self, source: DigitStrings, split: str, single: Records):
        sizes = {"train": source.train, "validation": source.validation, "test": source.test}
        self._seed, self._split, self._size, self._single = source.seed, split, sizes[split], single
        self.fingerprint = f"digit_strings/{VERSION}/{source.seed}/{self._size}/{single.fingerprint}"

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Without the image, or the speech, where one of its digits could not be read."""
        if not 0 <= index < self._size:
            raise IndexError(f"{self._split} has {self._size} numbers, and no {index}")
        rng = np.random.default_rng((self._seed, SPLITS.index(self._split), index))
        rows = rng.integers(len(self._single), size=rng.integers(1, MOST_DIGITS + 1))
        parts = [self._single[int(row)] for row in rows]
        if not all("label" in part for part in parts):
            return {}
        digits = [int(part["label"]) for part in parts]
        example: dict[str, Any] = {"text": " ".join(WORDS[digit] for digit in digits), "digits": digits}
        if all("image" in part for part in parts):
            example["image"] = concat_images([part["image"] for part in parts])
        if all("speech" in part for part in parts):
            example["speech"] = concat_recordings([part["speech"] for part in parts], rng)
        return example

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"


def concat_images(pictures: list[np.ndarray]) -> np.ndarray:
    """uint8[28 112 1]: the images side by side."""
    canvas = np.zeros((SIDE, MOST_DIGITS * SIDE, 1), np.uint8)
    canvas[:, : len(pictures) * SIDE] = np.concatenate(pictures, 1)
    return canvas


def concat_recordings(recordings: list[Recording], rng: np.random.Generator) -> Recording:
    """The recordings one after the other, equally loud, with short silences between them."""
    pieces: list[np.ndarray] = []
    for recording in recordings:
        samples = recording.samples.astype(np.float32)
        if pieces:
            pieces.append(np.zeros(round(rng.uniform(*GAP) * RATE), np.float32))
        pieces.append(PEAK * samples / max(1.0, float(np.abs(samples).max())))
    return Recording(np.concatenate(pieces), RATE)
