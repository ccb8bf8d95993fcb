"""Tfds: any data set of TensorFlow Datasets, by name."""

from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.mirror import data_root
from mmjax.data.sources.base import Recording, Records, Source
from mmjax.data.sources.building import build, is_built
from mmjax.errors import UserError

SPLITS = ("train", "validation", "test")


@chz.chz
class Tfds(Source):
    """A data set of TensorFlow Datasets by name, such as mnist; `prepare` downloads and converts it.

    Its features are raw fields: pictures and arrays as arrays, texts as texts, class labels by name, sounds as
    recordings where the feature has a sample rate.
    """

    name: str = chz.field(doc="name[/config][:version], as TFDS has it")
    train: str = chz.field(default="train", doc="which of its examples are for training, such as train[:90%]")
    validation: str | None = chz.field(default=None, doc="for validation, such as train[90%:]; None: no such split")
    test: str | None = chz.field(default="test", doc="for the test; None: no such split")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if getattr(self, split) is not None)

    def _builder(self, data_dir: str) -> Any:
        import tensorflow_datasets as tfds

        folder = data_root(data_dir)
        try:
            return tfds.builder(self.name, data_dir=folder, file_format="array_record")
        except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"source.name={self.name} is not a data set of TFDS: {reason}") from None

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        builder = self._builder(data_dir)
        build(builder)
        return Path(builder.data_dir)

    def open(self, data_dir: str, split: str) -> Records:
        builder = self._builder(data_dir)
        if not is_built(Path(builder.data_dir)):
            raise UserError(
                f"{builder.data_dir} is not there: prepare it with `python -m launch.prepare tfds name={self.name}`"
            )
        return TfdsRecords(builder, getattr(self, split), split)


class TfdsRecords:
    """The examples of one split; safe in threads, picklable."""

    def __init__(self, builder: Any, wanted: str, split: str):
        try:
            self._source = builder.as_data_source(split=wanted)
        except (ValueError, KeyError, AssertionError) as error:
            have = ", ".join(builder.info.splits)
            raise UserError(f"source.{split}={wanted}: the data set has {have} ({error})") from None
        self._features = builder.info.features
        self.split, self.fingerprint = split, f"{builder.info.full_name}/{wanted}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return {name: _raw(self._features[name], value) for name, value in example.items()}

    def id(self, index: int) -> str:
        return f"{self.split}/{index}"


def _raw(feature: Any, value: Any) -> Any:
    """A feature's value as a raw field."""
    names = getattr(feature, "names", None)
    if names and np.ndim(value) == 0:
        return names[int(value)]
    rate = getattr(feature, "sample_rate", None)
    if rate and np.ndim(value) == 1:
        samples = np.asarray(value)
        return Recording(samples.astype(np.int16) if samples.dtype.kind == "i" else samples, int(rate))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value
