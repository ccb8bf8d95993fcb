"""Filters: the examples of a source whose fields meet conditions, with random access."""

import contextlib
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.clean import BadInput, read_example
from mmjax.data.formats.index import QUIET_SECONDS
from mmjax.data.mirror import data_root, make_once
from mmjax.data.mixture import Mixture
from mmjax.data.sources.base import Records, Source, Unreadable
from mmjax.data.tokenize import column, field_value
from mmjax.errors import UserError

VERSION = 1
KEPT = "kept.npy"


@chz.chz
class Condition:
    """What a field must be. All that is given must hold, of a list for each of its items.

    Where a value is missing or cannot be read, only present=false holds.
    """

    one_of: tuple[str | int | float, ...] | None = chz.field(default=None, doc="the values that are kept")
    minimum: float | None = chz.field(default=None, doc="the smallest number that is kept")
    maximum: float | None = chz.field(default=None, doc="the largest number that is kept")
    shortest: int | None = chz.field(default=None, doc="fewest characters of a text, or items of a list")
    longest: int | None = chz.field(default=None, doc="most characters of a text, or items of a list")
    matches: str | None = chz.field(default=None, doc="a regular expression that is found in the text")
    present: bool | None = chz.field(default=None, doc="whether there is a value; None: as other conditions say")

    @chz.validate
    def _valid(self) -> None:
        given = [name for name in chz.chz_fields(Condition) if getattr(self, name) is not None]
        if not given:
            raise ValueError("give one of one_of, minimum, maximum, shortest, longest, matches and present")
        if self.present is False and len(given) > 1:
            raise ValueError("present=false leaves nothing for other conditions to hold of")
        for least, most in (("minimum", "maximum"), ("shortest", "longest")):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least}={low} must not be above {most}={high}")
        try:
            re.compile(self.matches or "")
        except re.error as error:
            raise ValueError(f"matches={self.matches} is not a regular expression: {error}") from None

    def holds(self, value: Any) -> bool:
        """Whether a raw value meets the condition. Raises TypeError where it cannot be compared."""
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        there = value is not None and value == value and not isinstance(value, Unreadable)
        if not there or self.present is False:
            return not there and self.present is False
        if self.shortest is not None or self.longest is not None:
            if not isinstance(value, str | bytes | list | tuple):
                raise TypeError("has no length")
            if not (self.shortest or 0) <= len(_text(value)) <= (len(value) if self.longest is None else self.longest):
                return False
        return all(map(self._holds_of_item, value if isinstance(value, list | tuple) else [value]))

    def _holds_of_item(self, item: Any) -> bool:
        item = _text(item)
        if self.one_of is not None and item not in self.one_of:
            return False
        if self.minimum is not None or self.maximum is not None:
            if not isinstance(item, int | float):
                raise TypeError("is not a number")
            if (self.minimum is not None and item < self.minimum) or (self.maximum is not None and item > self.maximum):
                return False
        if self.matches is not None:
            if not isinstance(item, str):
                raise TypeError("is not a text")
            return re.search(self.matches, item) is not None
        return True


def _text(value: Any) -> Any:
    """A text as str, where it is bytes; any other value as it is."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@chz.chz
class Filtered(Source):
    """The examples of a source whose fields meet conditions.

    Which these are is found once, by reading all, and kept under data_dir/indexes until the source or a condition
    changes.
    """

    source: Source = chz.field(doc="the source")
    where: Mapping[str, Condition] = chz.field(default_factory=dict, doc="conditions by raw field")

    @chz.validate
    def _valid(self) -> None:
        if isinstance(self.source, Mixture):
            raise ValueError("source must not be a Mixture: filter its sources")
        if not self.where:
            raise ValueError("where must not be empty: where.FIELD=Condition adds a condition")

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    @property
    def cluster_field(self) -> str | None:
        return self.source.cluster_field

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        folder = self.source.prepare(data_dir, manual_dir)
        for split in self.splits:
            self.open(data_dir, split)
        return folder

    def open(self, data_dir: str, split: str) -> "FilteredRecords":
        records = self.source.open(data_dir, split)
        conditions = sorted((field, repr(condition)) for field, condition in self.where.items())
        decides = [VERSION, records.fingerprint, split, conditions]
        name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        folder = data_root(data_dir) / "indexes" / f"filter-{name}"
        make_once(folder, KEPT, functools.partial(self._build, records, split))
        try:
            kept = np.load(folder / KEPT, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / KEPT} cannot be read ({error}): delete the folder") from None
        return FilteredRecords(records, kept, f"{records.fingerprint}/{name}")

    def _build(self, records: Records, split: str, folder: Path) -> None:
        from tqdm import tqdm

        rows = tqdm(
            _rows(records, [*self.where]), f"filtering {split}", len(records), unit=" examples", delay=QUIET_SECONDS
        )
        kept = [index for index, row in enumerate(rows) if self._keeps(records, index, row)]
        if not kept and len(records):
            fields, first = ", ".join(f"where.{field}" for field in self.where), records[0]
            unknown = [field for field in self.where if field not in first]
            lacks = f"no {unknown[0]}, but " if unknown else ""
            raise UserError(
                f"{fields} of a Filtered source keeps none of the {len(records):,} examples of the split {split}; the "
                f"first, {records.id(0)}, has {lacks}{', '.join(first)}: change the conditions"
            )
        np.save(folder / KEPT, np.array(kept, np.int64))

    def _keeps(self, records: Records, index: int, row: Mapping[str, Any]) -> bool:
        for field, condition in self.where.items():
            try:
                if not condition.holds(row.get(field)):
                    return False
            except TypeError as error:
                raise UserError(
                    f"where.{field} of a Filtered source cannot be applied to {records.id(index)}, whose {field} "
                    f"{error}: change the condition"
                ) from None
        return True


def _rows(records: Records, fields: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Some fields of every example, in order; those that cannot be read are left out."""
    if hasattr(records, "column"):
        for values in zip(*(column(records, field) for field in fields), strict=True):
            yield dict(zip(fields, values, strict=True))
        return
    for index in range(len(records)):
        example: dict[str, Any] = {}
        with contextlib.suppress(BadInput):
            example = read_example(records, index)
        yield example


class FilteredRecords:
    """Some of the examples of a split, by their indices; safe in threads, picklable."""

    def __init__(self, records: Records, kept: np.ndarray, fingerprint: str):
        self._records, self._kept, self.fingerprint = records, kept, fingerprint

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[int(self._kept[index])]

    def id(self, index: int) -> str:
        return self._records.id(int(self._kept[index]))

    def column(self, name: str) -> Iterator[Any]:
        """The values of a field, read without the others where the source can."""
        if not hasattr(self._records, "column"):
            return (field_value(self, index, name) for index in range(len(self)))
        kept = np.zeros(len(self._records), bool)
        kept[self._kept] = True
        return itertools.compress(column(self._records, name), kept)
