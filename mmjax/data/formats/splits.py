"""Which examples of a user's files are for training, validation and test."""

import abc
import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import chz

from mmjax.errors import UserError

SPLITS = ("train", "validation", "test")
# What people call the splits, in names of files and folders and in columns.
WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_of_name(path: str) -> str | None:
    """The split that a path names, as `val/dog/1.jpg` and `train-00001-of-00004.parquet` do, or None."""
    for part in path.split("/"):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in WORDS:
                return WORDS[word]
    return None


def hash_of(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@chz.chz
class Split(abc.ABC):
    """How examples are divided into train, validation and test."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values decide."""
        return ()

    @abc.abstractmethod
    def splits(self, files: Iterable[str]) -> tuple[str, ...]:
        """The splits there are, from the paths of the files alone."""

    @abc.abstractmethod
    def assign(self, file: str, id: str, values: Mapping[str, Any]) -> str | None:
        """The split of an example of a file, called `id`, with these values; None for one that is not used."""


@chz.chz
class SplitByName(Split):
    """By words in the paths of files and folders: train, val, valid, validation, dev, test."""

    validation: float = chz.field(default=0.0, doc="share of the train files' examples for validation, by their hash")

    @chz.validate
    def _valid(self) -> None:
        if not 0 <= self.validation < 1:
            raise ValueError("validation must be 0 or more, and less than 1")

    def splits(self, files: Iterable[str]) -> tuple[str, ...]:
        found = {split_of_name(file) for file in files}
        if self.validation and "train" in found:
            found.add("validation")
        return tuple(split for split in SPLITS if split in found)

    def assign(self, file: str, id: str, values: Mapping[str, Any]) -> str | None:
        split = split_of_name(file)
        return "validation" if split == "train" and hash_of(id) / 2**64 < self.validation else split


@chz.chz
class SplitByFile(Split):
    """By patterns of paths below the source's path, such as train=part-*.jsonl."""

    train: str = chz.field(doc="files of the train split: a name or a pattern with *")
    validation: str | None = chz.field(default=None, doc="files of the validation split")
    test: str | None = chz.field(default=None, doc="files of the test split")

    def splits(self, files: Iterable[str]) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if getattr(self, split) is not None)

    def assign(self, file: str, id: str, values: Mapping[str, Any]) -> str | None:
        for split in self.splits(()):
            if fnmatch.fnmatchcase(file, getattr(self, split)):
                return split
        return None


@chz.chz
class SplitByColumn(Split):
    """By the value of a column."""

    column: str = chz.field(default="split", doc="the column that names the split")
    train: str = chz.field(default="train", doc="its value for the train split")
    validation: str | None = chz.field(default="validation", doc="its value for the validation split; None: no such")
    test: str | None = chz.field(default="test", doc="its value for the test split; None: no such")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def splits(self, files: Iterable[str]) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if getattr(self, split) is not None)

    def assign(self, file: str, id: str, values: Mapping[str, Any]) -> str | None:
        if self.column not in values:
            raise UserError(f"{file} has no column {self.column!r}, by which split.column divides the examples")
        return next((split for split in self.splits(()) if str(values[self.column]) == getattr(self, split)), None)


@chz.chz
class SplitByHash(Split):
    """By the SHA-256 of an example's id, or of a column: examples of one speaker or patient share a split."""

    validation: float = chz.field(default=0.1, doc="share of the validation split")
    test: float = chz.field(default=0.1, doc="share of the test split")
    group: str | None = chz.field(
        default=None, doc="the column whose equal values stay in one split, such as speaker; None: the example's id"
    )
    salt: str = chz.field(default="", doc="text put before what is hashed, to draw other splits")

    @chz.validate
    def _valid(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError("validation and test must be 0 or more, and leave something for training")

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.group is None else (self.group,)

    def splits(self, files: Iterable[str]) -> tuple[str, ...]:
        return ("train", *(split for split in SPLITS[1:] if getattr(self, split) > 0))

    def assign(self, file: str, id: str, values: Mapping[str, Any]) -> str | None:
        if self.group is not None and values.get(self.group) is None:
            raise UserError(f"{id} has no value of {self.group!r}, by which split.group keeps examples together")
        value = id if self.group is None else str(values[self.group])
        place = hash_of(f"{self.salt}{value}") / 2**64
        return "test" if place < self.test else "validation" if place < self.test + self.validation else "train"
