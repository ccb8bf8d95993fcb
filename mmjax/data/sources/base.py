"""The base class of sources: splits, random access to raw examples, and preparation of files."""

import abc
import dataclasses
import re
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import chz
import numpy as np

from mmjax.types import Information


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
