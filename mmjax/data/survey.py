"""A survey of a data set: kinds, lengths and values of fields, and what is missing or undecodable."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmjax.data import clean
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording, Records, Unreadable

EXAMPLES = 1000  # are looked at, evenly spread, in each split
LONGEST_LABEL = 50  # characters
PERCENTILES = (0, 5, 50, 95, 100)


@dataclasses.dataclass(frozen=True)
class Field:
    """A raw field of a split.

    `kind` is "image", "audio", "text", "label", "number", "vector" or "other"; `sizes` are lengths by their unit, one
    for each value that was read; `values` are the most frequent values of a label, with their counts; `reasons` tell
    why values could not be read, and of which examples; `most` is how many values an example has at most, 1 where it
    has no list.
    """

    name: str
    kind: str
    examples: int
    missing: int
    distinct: int
    sizes: dict[str, np.ndarray]
    values: dict[str, int]
    reasons: dict[str, int]
    most: int

    @property
    def unreadable(self) -> int:
        """How many values are there and cannot be decoded."""
        return sum(self.reasons.values())

    def percentiles(self, unit: str) -> list[float]:
        """Minimum, 5%, median, 95% and maximum of a length."""
        return np.percentile(self.sizes[unit], PERCENTILES).tolist()


def survey(records: Records, examples: int = EXAMPLES) -> list[Field]:
    """The fields of a split, from as many examples, evenly spread."""
    rows: list[dict[str, Any]] = []
    looked_at = range(0, len(records), max(1, -(-len(records) // examples)))
    for index in looked_at:
        try:
            rows.append(clean.read_example(records, index))
        except BadInput as error:
            rows.append({"": Unreadable(str(error))})
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    ids = [records.id(index) for index in looked_at]
    return [_field(name, [row.get(name) for row in rows], ids) for name in names]


def _field(name: str, values: Sequence[Any], ids: Sequence[str]) -> Field:
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    there = [value for value in values if value is not None and not isinstance(value, Unreadable)]
    reasons = collections.Counter(value.reason for value in values if isinstance(value, Unreadable))
    several = any(isinstance(value, list | tuple) for value in there)
    most = max((len(value) for value in there if isinstance(value, list | tuple)), default=1)
    flat = [part for value in there for part in (value if isinstance(value, list | tuple) else [value])]
    kind = _kind(flat, several)
    sizes: dict[str, list[float]] = collections.defaultdict(list)
    damaged: dict[str, list[str]] = collections.defaultdict(list)
    for id, value in zip(ids, values, strict=True):
        if value is None or isinstance(value, Unreadable):
            continue
        for part in value if isinstance(value, list | tuple) and kind != "vector" else [value]:
            try:
                for unit, size in _sizes(kind, part).items():
                    sizes[unit].append(size)
            except BadInput as error:
                damaged[str(error)].append(id)
    reasons.update({f"{reason}: {', '.join(found[:3])}": len(found) for reason, found in damaged.items()})
    counts = collections.Counter(map(str, flat)) if kind in ("text", "label", "number") else {}
    shown = dict(counts.most_common(10)) if isinstance(counts, collections.Counter) and kind == "label" else {}
    arrays = {unit: np.array(found, float) for unit, found in sizes.items()}
    missing = sum(value is None for value in values)
    return Field(name, kind, len(values), missing, len(counts), arrays, shown, dict(reasons), most)


def _kind(values: list[Any], several: bool) -> str:
    """What values are, from all that were looked at."""
    if not values:
        return "other"
    if all(isinstance(value, Recording) for value in values):
        return "audio"
    if all(isinstance(value, np.ndarray) for value in values):
        return "image" if all(value.dtype == np.uint8 and value.ndim >= 2 for value in values) else "vector"
    if all(isinstance(value, bytes) for value in values):
        return next((kind for kind in ("image", "audio") if any(_reads(kind, value) for value in values[:20])), "other")
    if all(isinstance(value, str) for value in values):
        return "label" if _repeats(values) and max(map(len, values)) <= LONGEST_LABEL else "text"
    if all(isinstance(value, bool) for value in values):
        return "label"
    if all(isinstance(value, int) for value in values):
        return "vector" if several else "label" if _repeats(values) else "number"
    if all(isinstance(value, int | float) for value in values):
        return "vector" if several else "number"
    return "other"


def _repeats(values: Iterable[Any]) -> bool:
    """Whether values come back as those of classes do: five times each, on average."""
    counts = collections.Counter(values)
    return 1 < len(counts) <= max(2, sum(counts.values()) // 5)


def _reads(kind: str, value: bytes) -> bool:
    try:
        _sizes(kind, value)
    except BadInput:
        return False
    return True


def _sizes(kind: str, value: Any) -> dict[str, float]:
    """The lengths of a value, by unit. Raises BadInput for a picture or recording that cannot be decoded."""
    if kind == "image":
        height, width, _ = clean.decode_image(value, 3).shape
        return {"pixels high": float(height), "pixels wide": float(width)}
    if kind == "audio":
        samples, rate = clean.decode_audio(value)
        return {"seconds": len(samples) / rate, "samples a second": float(rate)}
    if kind == "text":
        return {"characters": float(len(value)), "bytes": float(len(value.encode()))}
    if kind == "number":
        return {"value": float(value)}
    if kind == "vector":
        return {"numbers": float(np.size(value))}
    return {}
