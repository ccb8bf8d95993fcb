"""av_digits: MNIST pictures with spoken digits, as TFDS keeps them in ArrayRecord files."""

from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np

from mmjax.data.sources import building, fsdd
from mmjax.data.sources.base import Recording, Records, Source
from mmjax.errors import UserError
from mmjax.files import local_path

VERSION = "1.0.0"
CLASSES = tuple("0123456789")


@chz.chz
class AvDigits(Source):
    """70,000 pictures of digits, each with a recording of the same digit.

    Raw fields: `image` uint8[28 28 1], `speech` at 8 kHz, `label` (0 to 9), `speaker`, and where they come from:
    `mnist_file`, `mnist_index`, `fsdd_file`. Example k of a split is row k of its pairing table.
    """

    pairing: Literal["recording_disjoint", "speaker_disjoint"] = chz.field(
        default="recording_disjoint", doc="whether the splits share no recording, or not even a speaker"
    )
    noise: Literal["noisy", "clean"] = chz.field(
        default="noisy", doc="4 principal components of the picture and the speech 10 dB below noise, or as published"
    )

    @property
    def config(self) -> str:
        return f"{self.pairing}_{self.noise}"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    @property
    def cluster(self) -> str:
        return "fsdd_file"

    def _folder(self, data_dir: str) -> Path:
        return local_path(data_dir) / "av_digits" / self.config / VERSION

    def open(self, data_dir: str, split: str) -> Records:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            kind = f"pairing={self.pairing} noise={self.noise}"
            raise UserError(
                f"there is no av_digits with {kind} in {data_dir}: run `python -m launch.prepare av_digits {kind} "
                f"data_dir={data_dir}`, with manual_dir=FOLDER if the raw files are at hand"
            )
        return AvDigitsRecords(folder, split)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            from mmjax.data.sources.av_digits_builder import AvDigitsBuilder

            raw = local_path(manual_dir) if manual_dir else None
            building.build(AvDigitsBuilder(data_dir=local_path(data_dir), config=self.config, manual_dir=raw))
        return folder


class AvDigitsRecords:
    """The examples of one split of a built av_digits."""

    def __init__(self, folder: Path, split: str):
        self._stored = building.Stored(folder, split)
        self._split = split
        self.fingerprint = self._stored.fingerprint

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._stored[index]
        # The builder keeps a picture or a recording that could not be read as an empty array.
        example = {name: value for name, value in example.items() if not isinstance(value, np.ndarray) or value.size}
        if "speech" in example:
            example["speech"] = Recording(example["speech"], fsdd.RATE)
        if (described := fsdd.describe(example.get("fsdd_file", ""))) is not None:
            example["speaker"] = described[1]
        return example

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"
