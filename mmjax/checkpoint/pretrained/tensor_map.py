"""How the tensors of another project become parameters here, and back: one entry each serves both directions."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.checkpoint.initialize import resize_position
from mmjax.checkpoint.pretrained.safetensors_folder import SafetensorsFolder
from mmjax.errors import UserError

LAYER = "{l}"  # in a name: the number of a block, which here is an index into a stack's leading dimension
SPLIT = "s"  # in a pattern: the axis along which several parameters lie in one tensor

Axes = list[list[str]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor there and a parameter here.

    Attributes:
        theirs: the tensor's name, with {l} for the number of a block.
        ours: the parameter's path below its part of the model, such as stack/blocks/mlp/up/kernel.
        pattern: how dimensions map, as einops writes it: "(h k) d -> d h k"; None: they are the same.
        part: (i, n) where the parameter is the i-th of n along the axis "s" of the pattern.
        rows: the first and the number of those along the tensor's dimension `along` that are meant; None: all.
        sizes: sizes of axes that the shape of the parameter does not give.
        truncate: whether only as many of the first rows are taken as there are here.
        order: by id here the id there, of a table of tokens, of which each is a row there.
        plus: another tensor that is added, and is zero on the way back.
        broadcast: of a `plus`: it is the same for everything in the first dimension.
        resize: whether positions of another grid are resized.
    """

    theirs: str
    ours: str
    pattern: str | None = None
    part: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None
    along: int = 0
    truncate: bool = False
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    order: Sequence[int] | None = None
    plus: "Entry | None" = None
    broadcast: bool = False
    resize: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter is one of a stack of blocks, each of which has its own tensor."""
        return LAYER in self.theirs

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """The tensors that become a parameter of that shape."""
        own = [self.theirs.replace(LAYER, str(layer)) for layer in range(shape[0])] if self.stacked else [self.theirs]
        return own + ([] if self.plus is None else self.plus.names(self.plus.inner(shape)))

    def inner(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a parameter's shape what one tensor gives."""
        return shape[1:] if self.stacked or self.broadcast else shape

    def axes(self, dimensions: int) -> tuple[Axes, Axes]:
        """The axes of every dimension, there and here."""
        same = " ".join("ijklmnop"[:dimensions])
        theirs, ours = (self.pattern or f"{same} -> {same}").split("->")
        return _parse(theirs), _parse(ours)

    def fit(self, theirs: tuple[int, ...], ours: tuple[int, ...]) -> dict[str, int]:
        """The size of every axis. Raises ValueError where the shapes do not fit each other."""
        left, right = self.axes(len(ours))
        if len(left) != len(theirs) or len(right) != len(ours):
            raise ValueError(f"{len(theirs)} and {len(ours)} dimensions")
        sizes = dict(self.sizes) | ({SPLIT: self.part[1]} if self.part else {})
        if self.rows is not None:
            if theirs[self.along] < sum(self.rows):
                raise ValueError(f"{theirs[self.along]} rows, where {sum(self.rows)} are needed")
            theirs = (*theirs[: self.along], self.rows[1], *theirs[self.along + 1 :])
        if self.truncate:
            if theirs[0] < ours[0]:
                raise ValueError(f"{theirs[0]} rows, where {ours[0]} are needed")
            theirs = (ours[0], *theirs[1:])
        if self.order is not None:
            if len(self.order) != ours[right.index(left[0])] or max(self.order) >= theirs[0]:
                raise ValueError(f"the tokenizer has {len(self.order)} ids up to {max(self.order)}")
            theirs = (len(self.order), *theirs[1:])
        dimensions = list(zip(left, theirs, strict=True))
        dimensions += [] if self.resize else list(zip(right, ours, strict=True))
        for _ in range(2):
            for axes, size in dimensions:
                _solve(sizes, axes, size)
        if self.resize:
            _solve(sizes, right[-1], ours[-1])
        return sizes

    def read(
        self, folder: SafetensorsFolder, shape: tuple[int, ...], index: Sequence[slice] | None = None
    ) -> np.ndarray:
        """A part of the parameter of that shape: only the bytes that it is made of are read."""
        index = tuple(index or [slice(None)] * len(shape))
        if not self.stacked:
            found = self._read_one(folder, self.theirs, self.inner(shape), index[len(shape) - len(self.inner(shape)) :])
        else:
            layers = range(*index[0].indices(shape[0]))
            names = [self.theirs.replace(LAYER, str(layer)) for layer in layers]
            found = np.stack([self._read_one(folder, name, shape[1:], index[1:]) for name in names])
        return found if self.plus is None else found + self.plus.read(folder, shape, index)

    def _read_one(
        self, folder: SafetensorsFolder, name: str, shape: tuple[int, ...], index: Sequence[slice]
    ) -> np.ndarray:
        theirs = folder.shape(name)
        sizes = self.fit(theirs, shape)
        left, right = self.axes(len(shape))
        # Which part of every axis is needed: of one that is a dimension here, what the index says.
        wanted = {axis: (0, size) for axis, size in sizes.items()}
        if self.part:
            wanted[SPLIT] = (self.part[0], self.part[0] + 1)
        if not self.resize:
            for axes, taken, size in zip(right, index, shape, strict=True):
                if len(axes) == 1:
                    wanted[axes[0]] = taken.indices(size)[:2]
        ranges: list[slice] = []
        inside: dict[str, tuple[int, int]] = {}
        for axes in left:
            start, stop = _contiguous(axes, sizes, wanted)
            whole = stop - start != math.prod(wanted[axis][1] - wanted[axis][0] for axis in axes)
            inside |= {axis: (0, sizes[axis]) if whole else wanted[axis] for axis in axes}
            ranges.append(slice(0, math.prod(sizes[axis] for axis in axes)) if whole else slice(start, stop))
        if self.order is not None:
            values = _read_rows(folder, name, self.order[ranges[0]], ranges)
        else:
            if self.rows is not None:
                taken, first = ranges[self.along], self.rows[0]
                ranges[self.along] = slice(first + taken.start, first + taken.stop)
            values = folder.read(name, ranges)
        flat = [axis for axes in left for axis in axes]
        values = values.reshape([inside[axis][1] - inside[axis][0] for axis in flat])
        cut = [slice(wanted[axis][0] - inside[axis][0], wanted[axis][1] - inside[axis][0]) for axis in flat]
        values = np.asarray(values[tuple(cut)])
        if self.part:
            values = np.take(values, 0, flat.index(SPLIT))
            flat.remove(SPLIT)
        values = einops.rearrange(values, f"{' '.join(flat)} -> {_write(right)}")
        if self.resize:
            if values.shape != shape:
                values = np.asarray(resize_position(jnp.asarray(values), shape))
            return values[tuple(index)]
        rest = [slice(None) if len(axes) == 1 else taken for axes, taken in zip(right, index, strict=True)]
        return np.asarray(values[tuple(rest)])

    def write(self, values: np.ndarray, tensors: "Pieces") -> None:
        """Adds what the parameter becomes to the tensors."""
        for place, name in enumerate(self.names(values.shape)[: len(values) if self.stacked else 1]):
            one = values[place] if self.stacked else values
            left, right = self.axes(one.ndim)
            kept = [[axis for axis in axes if axis != SPLIT] for axes in left]
            sizes = {axis: self.sizes[axis] for axes in kept for axis in axes if axis in self.sizes}
            piece = einops.rearrange(one, f"{_write(right)} -> {_write(kept)}", **sizes)
            if self.order is not None:
                back = np.zeros((max(self.order) + 1, *piece.shape[1:]), piece.dtype)
                back[list(self.order)] = piece  # of a row that is there twice the last is the one that is not padding
                piece = back
            dimension = next((i for i, axes in enumerate(left) if SPLIT in axes), self.along)
            first = self.part[0] if self.part else 0 if self.rows is None else self.rows[0]
            tensors[name][first] = (dimension, piece)
        if self.plus is not None:
            self.plus.write(np.zeros_like(values[0] if self.plus.broadcast else values), tensors)


# By name of a tensor: its pieces by place, each with the dimension along which they follow each other.
Pieces = defaultdict[str, dict[int, tuple[int, np.ndarray]]]


def join_pieces(pieces: Pieces) -> dict[str, np.ndarray]:
    """The tensors that the pieces make."""
    joined = {}
    for name, found in pieces.items():
        parts = [found[place] for place in sorted(found)]
        dimension, first = parts[0]
        whole = np.concatenate([piece for _, piece in parts], dimension) if len(parts) > 1 else first
        joined[name] = np.asarray(whole, order="C")
    return joined


def load_entry(folder: SafetensorsFolder, entry: Entry, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The parameter in the shape, dtype and sharding of `like`; each device's part is read by itself."""
    read: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        ranges = tuple(taken.indices(size) for taken, size in zip(index or (), like.shape, strict=True))
        if ranges not in read:
            read.clear()  # devices with the same part come one after the other
            read[ranges] = entry.read(folder, like.shape, index).astype(like.dtype)
        return read[ranges]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


def check_entries(folder: SafetensorsFolder, entries: Sequence[Entry], parameters: Mapping[str, Any]) -> None:
    """Raises UserError where a parameter has no entry, a tensor is missing, or shapes do not fit."""
    known = {entry.ours for entry in entries}
    if missing := [name for name in parameters if name not in known]:
        raise UserError(f"{folder.folder} has nothing for the parameter {missing[0]}: the part is built otherwise")
    there = set(folder.names)
    for entry in entries:
        if entry.ours not in parameters:
            raise UserError(
                f"{folder.folder} has {entry.theirs}, and here is no {entry.ours}: the part is built otherwise"
            )
        shape = parameters[entry.ours].shape
        for each in (entry, entry.plus) if entry.plus is not None else (entry,):
            for name in each.names(shape)[: shape[0] if each.stacked else 1]:
                if name not in there:
                    raise UserError(f"{folder.folder} lacks the tensor {name}, which would become {entry.ours}")
                try:
                    each.fit(folder.shape(name), each.inner(shape))
                except ValueError as error:
                    raise UserError(
                        f"{name} in {folder.folder} has the shape {folder.shape(name)}, which does not fit "
                        f"{entry.ours} of shape {tuple(shape)}: {error}"
                    ) from error


def _parse(side: str) -> Axes:
    axes: Axes = []
    for group in side.replace("(", " ( ").replace(")", " ) ").split():
        if group == "(":
            axes.append(["("])
        elif group == ")":
            axes[-1].remove("(")
        elif axes and axes[-1][:1] == ["("]:
            axes[-1].append(group)
        else:
            axes.append([group])
    return axes


def _write(axes: Axes) -> str:
    return " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in axes)


def _solve(sizes: dict[str, int], axes: list[str], size: int) -> None:
    """Adds the size of the one axis of a dimension that is not known, or of two that are equal; checks the others."""
    unknown = [axis for axis in axes if axis not in sizes]
    known = math.prod(sizes[axis] for axis in axes if axis in sizes)
    if not unknown and known != size:
        raise ValueError(f"{size} is not {known}")
    if len(unknown) == 1:
        if size % known:
            raise ValueError(f"{known} does not divide {size}")
        sizes[unknown[0]] = size // known


def _contiguous(axes: list[str], sizes: Mapping[str, int], wanted: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """The first range of a dimension that holds what is wanted of its axes."""
    start = stop = 0
    for axis in axes:
        start, stop = start * sizes[axis] + wanted[axis][0], max(stop - 1, 0) * sizes[axis] + wanted[axis][1]
    return start, stop


def _read_rows(folder: SafetensorsFolder, name: str, order: Sequence[int], ranges: Sequence[slice]) -> np.ndarray:
    """Rows of a table by their numbers there, most of which follow each other."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(order), lambda place: place[1] - place[0])]
    return np.concatenate([folder.read(name, [slice(run[0][1], run[-1][1] + 1), *ranges[1:]]) for run in runs])
