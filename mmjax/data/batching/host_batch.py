"""The rows of a batch that one process loads, as NumPy arrays, and what in them could not be read."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int

from mmjax.data.batching.packing import Packing
from mmjax.errors import UserError
from mmjax.types import Batch, Feature, Packed


@dataclasses.dataclass(frozen=True)
class BadValue:
    """A value that could not be used: `feature` of example `index`, named `id`, and the reason."""

    index: int
    id: str
    feature: str
    reason: str


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "batch"],
    meta_fields=["step", "size", "ids", "errors", "seconds", "retries", "fill", "cut"],
)
@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of global batch `step` that one process loads, as NumPy arrays.

    `rows` are their indices in the global batch of `size`, ascending. `ids` names all examples of the *global* batch,
    "" for the padding at the end of an evaluation. `seconds` is the time that loading took, `retries` how many reads of
    a bucket were tried again. `fill` is the share of the positions of these rows that hold something, by packed
    feature, and `cut` how many sequences were cut to fit.
    """

    step: int
    size: int
    rows: Int[np.ndarray, "R"]
    batch: Batch
    ids: tuple[str, ...]
    errors: tuple[BadValue, ...]
    seconds: float
    retries: int = 0
    fill: dict[str, float] = dataclasses.field(default_factory=dict)
    cut: int = 0

    @property
    def real(self) -> Bool[np.ndarray, "R"]:
        """Which rows are examples and not padding."""
        return np.array([bool(self.ids[row]) for row in self.rows], bool)


def empty_batch(
    features: Mapping[str, Feature], rows: int, packing: Packing | None = None, batch_size: int | None = None
) -> Batch:
    """A batch in which every feature is absent.

    With `packing` these are the rows of one process, out of the `batch_size` of a global batch. Raises UserError where
    the number of packed rows is left to the data.
    """
    values, mask, places = {}, {}, {}
    for name, feature in features.items():
        packed = None if packing is None else packing.features.get(name)
        if packed is not None:
            assert packing is not None
            assert batch_size is not None
            if packed.rows is None:
                raise UserError(f"set data.packing.features.{name}.rows, which is left to the data and not known here")
            shape: tuple[int, ...] = (packed.rows * rows // batch_size, packed.length)
            values[name] = np.zeros((*shape, *feature.shape[1:]), feature.dtype)
            mask[name] = np.zeros(shape, np.int32)
            row, start, length = (np.zeros(rows, np.int32) for _ in range(3))
            places[name] = Packed(row, start, length, packing.parts, packed.rows, packed.length, feature.shape[0])
            continue
        values[name] = np.zeros((rows, *feature.shape), feature.dtype)
        if feature.has_mask:
            mask[name] = np.zeros((rows, feature.shape[0]), bool)
    return Batch(values, mask, {name: np.zeros(rows, bool) for name in features}, places)


def set_example(batch: Batch, place: int, name: str, values: np.ndarray, mask: np.ndarray | None) -> None:
    """Sets a feature of the example at `place` of a NumPy batch to the result of `Input.read`."""
    batch.values[name][place] = values
    if mask is not None:
        batch.mask[name][place] = mask
    batch.present[name][place] = True


def set_packed(
    batch: Batch, place: int, name: str, values: np.ndarray, mask: np.ndarray | None, row: int, start: int, most: int
) -> bool:
    """Sets a packed feature of the example at `place` to at most `most` positions of a row.

    `row` counts within its part of the batch; the sequence begins at `start`. Returns whether it was cut.
    """
    packed = batch.packed[name]
    own_rows = packed.row_count // packed.parts
    assert mask is not None
    whole = int(mask.sum())
    length = min(whole, most)
    packed.rows[place], packed.starts[place], packed.lengths[place] = row, start, length
    # Of this process's parts.
    own_examples = len(packed.rows) * own_rows // len(batch.values[name])
    row += place // own_examples * own_rows
    batch.values[name][row, start : start + length] = values[:length]
    batch.mask[name][row, start : start + length] = place + 1
    batch.present[name][place] = length > 0
    return length < whole


def filled_share(batch: Batch) -> dict[str, float]:
    """The share of the positions of all rows that hold a part of a sequence, by packed feature."""
    return {name: float(np.mean(batch.mask[name] > 0)) for name in batch.packed}


def chain_digest(digest: str, ids: Sequence[str]) -> str:
    """SHA-256 of the previous digest ("" at first) and a batch's example names, in hexadecimal."""
    return hashlib.sha256("\n".join([digest, *ids]).encode()).hexdigest()


class BadValueMonitor:
    """Counts read and unusable values by feature, and stops a run with too many unusable ones."""

    # So many values are looked at before a share is taken: one bad value in a first batch of four says little.
    MIN_VALUES = 256

    def __init__(self, max_bad_share: float):
        self.max_bad_share = max_bad_share
        self.read: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()

    def add(self, host: HostBatch) -> None:
        """Counts a batch; UserError when more than `max_bad_share` of a feature is unusable."""
        count = int(host.real.sum())
        self.read.update(dict.fromkeys(host.batch.present, count))
        for error in host.errors:
            self.bad[error.feature] += 1
            bad, read = self.bad[error.feature], self.read[error.feature]
            if bad > self.max_bad_share * max(read, self.MIN_VALUES):
                raise UserError(
                    f"{bad} of {read} values of {error.feature!r} cannot be used, the last one, of {error.id}, because "
                    f"{error.reason}: fix the data, or raise data.max_bad_share, which is {self.max_bad_share}"
                )
