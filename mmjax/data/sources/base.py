"""The base class of sources: splits, random access to raw examples, and preparation of files."""

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import chz
import numpy as np

from mmjax.data.batching.order import Order, ShuffledEpochs
from mmjax.types import Information

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Recording:
    """Mono sound: int16[T] at full scale 32768, or float32[T] in [-1, 1], at `rate` samples per second."""

    samples: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """Stands in a raw field for a value that is there and could not be read, and says why."""

    reason: str


@runtime_checkable
class Records(Protocol):
    """Random access to one split's raw examples; cheap to open, picklable and safe in threads."""

    fingerprint: str
    """Changes when the content does."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw fields of example `index`.

        An image is bytes (PNG, JPEG) or uint8[H W C], a recording a `Recording`, a text a str, a label an int or a list
        of ints (slots), a vector field a float array [S Q]. A field that could not be had is left out, or is an
        `Unreadable`; one bad example never raises.
        """
        ...

    def id(self, index: int) -> str:
        """The stable name of example `index`, such as "train/123"; reads no data."""
        ...


@chz.chz
class Source(abc.ABC):
    """A source of examples. Its class name in snake case is its name on the command line.

    A subclass's fields select a variant.
    """

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The available splits, out of "train", "validation" and "test"."""

    @property
    def information(self) -> Information | None:
        """The exact information of modalities `a` and `b` about the label, where it is known."""
        return None

    @property
    def cluster_field(self) -> str | None:
        """The raw field whose equal values make examples dependent, such as a shared recording.

        Confidence intervals then resample clusters of examples. None: all examples are independent.
        """
        return None

    def order(self, records: Records, seed: int, batch_size: int) -> Order:
        """The order in which a training with that seed reads the train split, opened as `records`."""
        return ShuffledEpochs(len(records), seed)

    def parts(self, records: Records) -> Mapping[str, Records]:
        """What a split, opened as `records`, consists of, by name; "" is the one part of all but mixtures."""
        return {"": records}

    def part_of(self, id: str) -> str:
        """The name of the part that an example belongs to."""
        return ""

    def inputs_of(self, part: str, inputs: Mapping[str, T]) -> Mapping[str, T]:
        """The inputs that read a part's examples, by feature: those of `Data`, if it has not its own."""
        return inputs

    def fit_inputs(self, fit: Callable[[str, Any], Any], inputs: Mapping[str, Any]) -> "Source":
        """This source with its own inputs fitted to the training data by `fit(feature, input)`.

        `inputs` are those of `Data`, fitted. Raises UserError where the source's own inputs do not agree with them.
        """
        return self

    def feature_records(self, records: Records, feature: str, field: str) -> Records:
        """The examples with what is read for a feature in the field that the input of `Data` reads."""
        return records

    def changed(self, old: "Source", step: int) -> str | None:
        """Why a run that began with `old`, which differs, cannot go on with this one after `step` steps.

        None where it can.
        """
        return ""

    @abc.abstractmethod
    def open(self, data_dir: str, split: str) -> Records:
        """The examples of a split; UserError, naming the command to run, where they are not prepared."""

    @abc.abstractmethod
    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        """Builds the files that `open` reads unless they exist; returns their folder.

        A partial build never counts as complete.
        """


def source_name(cls: type) -> str:
    """A source's name on the command line and on disk: AvDigits -> av_digits."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
