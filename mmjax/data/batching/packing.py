"""Packing: several sequences in one row, and steps with about as many positions each.

As in NaViT (Dehghani et al. 2023, "Patch n' Pack") and in language models, but decided from an index of lengths for a
whole window of steps, so that a batch stays a function of the seed and the step.
"""

import bisect
import dataclasses
from collections.abc import Mapping

import chz
import numpy as np
from jaxtyping import Int

from mmjax.errors import UserError
from mmjax.types import Feature

# So many windows of training examples tell how many rows a batch needs: fewer where they are large, and so alike.
WINDOWS, LEAST_WINDOWS, SAMPLED_EXAMPLES = 64, 8, 2**16
# Loads are compared as integers: a part's mean load of a feature, and what no load reaches.
_MEAN_LOAD, _FULL = 2**18, 2**62


@chz.chz
class PackedRows:
    """The rows that one feature's sequences are packed into."""

    length: int = chz.field(doc="positions of a row")
    rows: int | None = chz.field(default=None, doc="rows of a batch; None: as many as the training examples need")
    multiple: int = chz.field(
        default=1, doc="each sequence starts at a multiple of this many positions: the stride of its encoder"
    )

    @chz.validate
    def _valid(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ValueError("rows must be 1 or more")
        if not 1 <= self.multiple <= self.length:
            raise ValueError("multiple must lie between 1 and length")


@chz.chz
class Packing:
    """Which features are packed, and how examples are dealt over steps."""

    features: Mapping[str, PackedRows] = chz.field(default_factory=dict, doc="the rows of each packed feature, by name")
    window: int = chz.field(
        default=16, doc="steps over which examples are dealt together, so that all have as many positions"
    )
    parts: int = chz.field(
        default=1, doc="parts of a batch that are packed separately: a multiple of the parts that the mesh splits it in"
    )
    examples: int | None = chz.field(
        default=None,
        doc="examples of a step on average; None: batch_size. With fewer, a step has more of short ones, and the slots "
        "left over are empty",
    )

    @chz.validate
    def _valid(self) -> None:
        for name in ("window", "parts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more")
        if self.examples is not None and self.examples < 1:
            raise ValueError("examples must be 1 or more")
        for name, packed in self.features.items():
            if (packed.rows or 0) % self.parts:
                raise ValueError(f"the rows of {name} must be a multiple of parts={self.parts}")

    def check(self, features: Mapping[str, Feature], batch_size: int) -> None:
        """Raises UserError where it does not suit the features of a model or the batch size."""
        if not self.features:
            raise UserError("data.packing.features is empty: add a feature as PackedRows, or set data.packing=None")
        for name in self.features:
            if name not in features:
                raise UserError(
                    f"data.packing.features.{name}: there is no such feature; there are {', '.join(features)}"
                )
            if not features[name].is_sequence:
                raise UserError(
                    f"data.packing.features.{name}: a feature of the kind {type(features[name]).__name__} is not a "
                    "sequence and cannot be packed; leave it out (images of any size are sequences with PatchesInput)"
                )
        if batch_size % self.parts:
            raise UserError(
                f"data.packing.parts={self.parts} does not divide batch_size={batch_size}; set one to match"
            )
        if self.examples is not None and self.examples > batch_size:
            raise UserError(
                f"data.packing.examples={self.examples} is above batch_size={batch_size}; lower it, or leave it"
            )

    def next_window(self, step: int) -> int:
        """The first step, from this one on, that is dealt apart from all before it."""
        return -(-step // self.window) * self.window

    def window_examples(self, batch_size: int) -> int:
        """The number of examples of a window of steps."""
        return self.window * (self.examples or batch_size)


@dataclasses.dataclass(frozen=True)
class PackedStep:
    """Where the examples of one step are: B slots, and by feature a stretch of a row for each.

    `places` are the places of the examples in their window, -1 for an empty slot. By feature, `rows` are counted within
    the part of the batch, `starts` are positions in the row, and `lengths` the number of positions there: 0 where the
    feature is absent, and less than was asked for where it was cut.
    """

    places: Int[np.ndarray, "B"]
    rows: dict[str, Int[np.ndarray, "B"]]
    starts: dict[str, Int[np.ndarray, "B"]]
    lengths: dict[str, Int[np.ndarray, "B"]]

    def place(self, name: str, slot: int) -> tuple[int, int, int]:
        """The row, the start and the length of the packed sequence in a slot."""
        return int(self.rows[name][slot]), int(self.starts[name][slot]), int(self.lengths[name][slot])


def arrange(lengths: Mapping[str, Int[np.ndarray, "W"]], packing: Packing, batch_size: int) -> list[PackedStep]:
    """The steps of a window: each example in one, and about as many positions in each part of each.

    Where a part's sequences do not fit its rows, the longest are cut, to the largest number of positions with which all
    fit. Only integers decide, so every machine arranges alike.

    Args:
        lengths: positions that each example of the window takes, by packed feature; 0: absent.
        packing: has its rows filled in (see `rows_for`).
    """
    order, begins = _deal(lengths, packing, batch_size)
    size = batch_size // packing.parts
    within = np.arange(len(order)) - np.repeat(begins[:-1], np.diff(begins))
    slots = within + size * np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    shape = packing.window, batch_size
    places = np.full(packing.window * batch_size, -1)
    places[slots] = order
    found = {}
    for name, packed in packing.features.items():
        assert packed.rows is not None
        arrays = np.zeros((3, packing.window * batch_size), np.int64)
        arrays[2, slots] = lengths[name][order]
        for first in range(0, arrays.shape[1], size):
            _pack_part(arrays[:, first : first + size], packed.rows // packing.parts, packed)
        found[name] = arrays.reshape(3, *shape)

    steps = []
    for step, each in enumerate(places.reshape(shape)):
        rows, starts, kept = ({name: arrays[part, step] for name, arrays in found.items()} for part in range(3))
        steps.append(PackedStep(each, rows, starts, kept))
    return steps


def sample_windows(count: int, examples: int) -> list[int]:
    """Some of a training's `count` windows of so many examples each, the same for every seed."""
    windows = max(LEAST_WINDOWS, min(WINDOWS, SAMPLED_EXAMPLES // examples))
    # The generator whose numbers NumPy never changes.
    return np.random.RandomState(0).permutation(min(count, 2**20))[:windows].tolist()


def rows_for(lengths: Mapping[str, Int[np.ndarray, "V W"]], packing: Packing, batch_size: int) -> Packing:
    """The packing with the number of rows of each feature: the smallest that cuts nothing in V windows.

    Args:
        lengths: positions that each of the W examples of a window takes, by packed feature; 0: absent.

    Raises UserError where rows are too short for an example, and where given rows are too few for a mean batch.
    """
    for name, packed in packing.features.items():
        longest = int(lengths[name].max(initial=0))
        if longest > packed.length:
            raise UserError(
                f"data.packing.features.{name}.length={packed.length} is shorter than an example of {longest} "
                f"positions; raise it, or lower the length of data.inputs.{name}"
            )
    needed: dict[str, int] | None = None
    filled = {}
    for name, packed in packing.features.items():
        mean = float(_spans(lengths[name], packed).mean()) * (packing.examples or batch_size)
        if packed.rows is None or mean > packed.rows * packed.length:
            needed = needed or _needed_rows(lengths, packing, batch_size)
            if packed.rows is not None:
                raise UserError(
                    f"a batch takes {mean:.0f} positions of {name} on average, and data.packing.features.{name} has "
                    f"{packed.rows} rows of {packed.length}: set rows to {needed[name]} or more, or lower batch_size"
                )
            packed = chz.replace(packed, rows=needed[name])
        filled[name] = packed
    return chz.replace(packing, features=filled)


def _needed_rows(lengths: Mapping[str, np.ndarray], packing: Packing, batch_size: int) -> dict[str, int]:
    """By feature the fewest rows with which nothing is cut in any of the windows."""
    rows = dict.fromkeys(packing.features, 1)
    for window in range(len(next(iter(lengths.values())))):
        found = {name: lengths[name][window] for name in packing.features}
        order, starts = _deal(found, packing, batch_size)
        for name, packed in packing.features.items():
            for part in np.split(found[name][order], starts[1:-1]):
                sizes = sorted(part[part > 0].tolist(), reverse=True)
                while _pack(sizes, rows[name], packed) is None:
                    rows[name] += 1
    return {name: each * packing.parts for name, each in rows.items()}


def _spans(lengths: np.ndarray, packed: PackedRows) -> np.ndarray:
    """Positions up to where the next sequence may start."""
    return -(-lengths.astype(np.int64) // packed.multiple) * packed.multiple


def _deal(
    lengths: Mapping[str, np.ndarray], packing: Packing, batch_size: int
) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "P"]]:
    """The places of the examples part by part, ascending in each, and where each part begins.

    Longest first, each goes to the part with a free slot that has the least of what it brings: the one with the
    smallest product of loads and lengths, summed over features. The end comes after the last beginning.
    """
    bins, size = packing.window * packing.parts, batch_size // packing.parts
    spans = np.stack([_spans(lengths[name], packed) for name, packed in packing.features.items()], 1)
    spans = spans * (_MEAN_LOAD * bins) // np.maximum(spans.sum(0), 1)
    loads = np.zeros((bins, spans.shape[1]), np.int64)
    used = np.zeros(bins, np.int64)  # slots, which decide where loads do not
    assigned = np.empty(len(spans), np.int64)
    for place in np.argsort(-spans.max(1), kind="stable").tolist():
        part = int((loads @ spans[place] + used).argmin())
        assigned[place] = part
        loads[part] += spans[place]
        used[part] += 1
        if used[part] == size:
            used[part] = _FULL
    return np.argsort(assigned, kind="stable"), np.searchsorted(np.sort(assigned), np.arange(bins + 1))


def _pack_part(part: Int[np.ndarray, "3 S"], rows: int, packed: PackedRows) -> None:
    """Fills in rows, starts and lengths of a part's slots, whose lengths are those asked for."""
    asked = np.minimum(part[2], packed.length)
    by_size = np.argsort(-asked, kind="stable")[: np.count_nonzero(asked)]
    sizes = asked[by_size].tolist()
    # Where not even one position each is left for all, the shortest are absent.
    del sizes[rows * -(-packed.length // packed.multiple) :]
    placed = _pack(sizes, rows, packed)
    if placed is None:
        low, high = 1, sizes[0]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _pack(_cut(sizes, middle), rows, packed) else (low, middle)
        sizes = _cut(sizes, low)
        placed = _pack(sizes, rows, packed)
        assert placed is not None  # one position each always fits
    part[:] = 0
    part[:2, by_size[: len(sizes)]] = np.array(placed, np.int64).reshape(-1, 2).T
    part[2, by_size[: len(sizes)]] = sizes


def _cut(sizes: list[int], most: int) -> list[int]:
    return [min(size, most) for size in sizes]


def _pack(sizes: list[int], rows: int, packed: PackedRows) -> list[tuple[int, int]] | None:
    """Row and start of each sequence, which are sorted from long to short; None where they do not fit.

    Best fit decreasing: each is put where the least room is left over (Johnson et al. 1974).
    """
    # Room and number of each row with room, as one integer, in order.
    open_rows = [packed.length * rows + row for row in range(rows)]
    placed = []
    for size in sizes:
        place = bisect.bisect_left(open_rows, size * rows)
        if place == len(open_rows):
            return None
        room, row = divmod(open_rows.pop(place), rows)
        placed.append((row, packed.length - room))
        room -= -(-size // packed.multiple) * packed.multiple
        if room > 0:
            bisect.insort(open_rows, room * rows + row)
    return placed
