"""What every source of examples offers: splits, random access to raw examples, and the building of what it reads."""

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
    """One channel of sound: int16[T] at full scale 32768, or float32[T] in [-1, 1], at `rate` samples a second."""

    samples: np.ndarray
    rate: int


@runtime_checkable
class Records(Protocol):
    """Random access to the raw examples of one split. Cheap to open, picklable, and safe to share between threads."""

    fingerprint: str
    """Changes when the content does."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw fields of example `index`.

        A picture is bytes (PNG, JPEG) or uint8[H W C], a recording a `Recording`, a text a str, a label an int or a
        list of ints (slots), a quantity a float array [S Q]. A field that could not be had is left out; one bad
        example never raises.
        """
        ...

    def id(self, index: int) -> str:
        """The stable name of example `index`, such as "train/123"; reads nothing."""
        ...


@chz.chz
class Source(abc.ABC):
    """Where examples come from. A subclass's fields select a variant; its class name in snake case is its name."""

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits there are: some of "train", "validation" and "test"."""

    @property
    def information(self) -> Information | None:
        """What modalities `a` and `b` tell about the label, where that is known exactly."""
        return None

    @property
    def cluster(self) -> str | None:
        """The raw field whose equal values make examples depend on each other, as a recording that several share does.

        Intervals then resample clusters of examples. None: every example is independent of the others.
        """
        return None

    @abc.abstractmethod
    def open(self, data_dir: str, split: str) -> Records:
        """The examples of a split; UserError, naming the command to run, where they are not there."""

    @abc.abstractmethod
    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        """Builds what `open` reads unless it is there; returns its folder. What is half built never counts as built."""


def source_name(cls: type) -> str:
    """The name a source has on the command line and on disk: AvDigits -> av_digits."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
