"""av_digits: MNIST images with spoken digits, stored by TFDS in ArrayRecord files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np

from mmjax.data.mirror import data_root
from mmjax.data.sources import building, fsdd
from mmjax.data.sources.base import Recording, Records
from mmjax.data.sources.constants import AV_DIGITS_VERSION as VERSION

CLASSES = tuple("0123456789")


@chz.chz
class AvDigits(building.BuiltSource):
    """70,000 images of digits, each with a recording of the same digit.

    Raw fields: `image` uint8[28 28 1], `speech` at 8 kHz, `label` (0 to 9), `speaker`, and their origins: `mnist_file`,
    `mnist_index`, `fsdd_file`. Example k of a split is row k of its pairing table.
    """

    pairing: Literal["recording_disjoint", "speaker_disjoint"] = chz.field(
        default="recording_disjoint", doc="whether the splits share no recording, or not even a speaker"
    )
    noise: Literal["noisy", "clean"] = chz.field(
        default="noisy", doc="images of 4 principal components and speech 10 dB below noise, or as published"
    )

    @property
    def config(self) -> str:
        return f"{self.pairing}_{self.noise}"

    @property
    def cluster_field(self) -> str:
        return "fsdd_file"

    def _folder(self, data_dir: str) -> Path:
        return data_root(data_dir) / "av_digits" / self.config / VERSION

    def _builder(self) -> Callable[..., Any]:
        from mmjax.data.sources.av_digits_builder import AvDigitsBuilder

        return functools.partial(AvDigitsBuilder, config=self.config)

    def open(self, data_dir: str, split: str) -> Records:
        return AvDigitsRecords(self.built_folder(data_dir), split)


class AvDigitsRecords(building.StoredExamples):
    """The examples of one split of a built av_digits."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        # The builder keeps a picture or a recording that could not be read as an empty array.
        example = {name: value for name, value in example.items() if not isinstance(value, np.ndarray) or value.size}
        if "speech" in example:
            example["speech"] = Recording(example["speech"], fsdd.RATE)
        if (described := fsdd.parse_name(example.get("fsdd_file", ""))) is not None:
            example["speaker"] = described[1]
        return example
