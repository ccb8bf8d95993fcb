"""Mixtures: several sources read as one, by weights that may change in stages of the training."""

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import chz

from mmjax.data.batching.order import MixtureOrder, Order, Shares
from mmjax.data.inputs import Input, TextInput
from mmjax.data.mirror import data_root
from mmjax.data.sources.base import Records, Source, Unreadable
from mmjax.data.tokenize import column
from mmjax.errors import UserError

T = TypeVar("T")

KEY = "data.source.sources"
SPLITS = ("train", "validation", "test")
SOURCE = "source"
"""The raw field that holds the name of an example's source."""
CLUSTER = "$cluster"
"""The raw field that holds what makes examples dependent, where a source has a `cluster_field`."""


@chz.chz
class MixtureSource:
    """A source of a mixture: how often it is read, and what its fields are called."""

    source: Source = chz.field(doc="the source")
    weight: float | None = chz.field(
        default=None,
        doc="how often it is read relative to the others; 0: in stages alone; None: by the mixture's alpha",
    )
    epochs: float | None = chz.field(
        default=None, doc="epochs after which it is not read any more, and the others share its weight; None: no limit"
    )
    fields: Mapping[str, str | None] = chz.field(
        default_factory=dict, doc="this source's own field by the raw field that an input reads; None: it has none"
    )
    inputs: Mapping[str, Input | None] = chz.field(
        default_factory=dict, doc="inputs of this source alone, in place of those of data.inputs; None: absent here"
    )

    @chz.validate
    def _valid(self) -> None:
        if self.weight is not None and self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs={self.epochs} must be above 0")
        if isinstance(self.source, Mixture):
            raise ValueError("source must not be a Mixture: put its sources beside the others")


@chz.chz
class MixtureStage:
    """Weights of the sources from a step of the training on."""

    start: int = chz.field(doc="the number of training steps before it")
    weights: Mapping[str, float] = chz.field(default_factory=dict, doc="by source; one that is not named is not read")

    @chz.validate
    def _valid(self) -> None:
        if self.start < 1:
            raise ValueError(f"start={self.start} must be 1 or more: at first the weights of the sources hold")
        if wrong := [name for name, weight in self.weights.items() if weight < 0]:
            raise ValueError(f"weights must not be negative, and that of {wrong[0]} is {self.weights[wrong[0]]}")
        if not any(self.weights.values()):
            raise ValueError("weights must not all be 0")


@chz.chz
class Mixture(Source):
    """Several sources as one, read by weights, each in a permutation of its own per epoch.

    Each source has its share (see `mmjax.data.batching.order.MixtureOrder`). An example is named SOURCE/ID and has the
    field `source`. Each source keeps its splits, and what it lacks is absent.
    """

    sources: Mapping[str, MixtureSource | None] = chz.field(
        default_factory=dict, doc="the sources by name; None leaves one out"
    )
    alpha: float | None = chz.field(
        default=None, doc="where no weights are given, they are size^alpha of the train splits; None: 1"
    )
    stages: tuple[MixtureStage, ...] = chz.field(
        default=(), doc="changes of the weights; those of the sources hold until the first"
    )

    @chz.validate
    def _valid(self) -> None:
        weights = {name: part.weight for name, part in self._parts.items()}
        given = [name for name, weight in weights.items() if weight]
        free = [name for name, weight in weights.items() if weight is None]
        if given and free:
            raise ValueError(f"give all sources a weight or none of them: {given[0]} has one, and {free[0]} has not")
        if not given and not free:
            raise ValueError("the weights must not all be 0" if weights else "sources must not be empty")
        if given and self.alpha is not None:
            raise ValueError(f"alpha={self.alpha} is for sources without weights, and {given[0]} has one")
        if self.alpha is not None and self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} must not be negative")
        for number, (before, stage) in enumerate(itertools.pairwise(self.stages), 1):
            if stage.start <= before.start:
                raise ValueError(f"stages.{number}.start={stage.start} must be more than that before, {before.start}")
        for number, stage in enumerate(self.stages):
            if unknown := [name for name in stage.weights if name not in weights]:
                raise ValueError(
                    f"stages.{number}.weights names {unknown[0]}, and the sources are {', '.join(weights)}"
                )

    @property
    def _parts(self) -> dict[str, MixtureSource]:
        return {name: part for name, part in self.sources.items() if part is not None}

    @property
    def splits(self) -> tuple[str, ...]:
        there = {split for part in self._parts.values() for split in part.source.splits}
        return tuple(split for split in SPLITS if split in there)

    @property
    def cluster_field(self) -> str | None:
        return CLUSTER if any(part.source.cluster_field for part in self._parts.values()) else None

    def open(self, data_dir: str, split: str) -> "MixtureRecords":
        opened = []
        for name, part in self._parts.items():
            try:
                if split in part.source.splits:
                    records = part.source.open(data_dir, split)
                    opened.append(PartRecords(name, records, part.fields, part.source.cluster_field))
            except UserError as error:
                raise UserError(f"{KEY}.{name}: {error}") from error
        return MixtureRecords(opened)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        if manual_dir:
            raise UserError("a mixture has several sources: leave out manual_dir, and prepare them one by one")
        for part in self._parts.values():
            part.source.prepare(data_dir)
        return data_root(data_dir)

    def order(self, records: Records, seed: int, batch_size: int) -> Order:
        sizes = {name: len(part) for name, part in self.parts(records).items()}
        shares = [Shares(0, self._first_weights(sizes))]
        shares += [Shares(stage.start * batch_size, _exact(stage.weights)) for stage in self.stages]
        for share in shares:
            if lacking := [name for name, weight in share.weights.items() if weight and name not in sizes]:
                raise UserError(
                    f"{KEY}.{lacking[0]} has no train examples to read from step {share.start // batch_size} on: set "
                    "its weight to 0"
                )
        limits = {
            name: max(1, int(Fraction(str(part.epochs)) * sizes[name]))
            for name, part in self._parts.items()
            if part.epochs is not None and name in sizes
        }
        return MixtureOrder(sizes, shares, limits, seed)

    def _first_weights(self, sizes: Mapping[str, int]) -> dict[str, Fraction]:
        given = {name: part.weight for name, part in self._parts.items() if part.weight}
        if given:
            return _exact(given)
        alpha = 1.0 if self.alpha is None else self.alpha
        free = {name: size for name, size in sizes.items() if self._parts[name].weight is None}
        return {name: Fraction(size) if alpha == 1 else Fraction(str(size**alpha)) for name, size in free.items()}

    def parts(self, records: Records) -> "Mapping[str, PartRecords]":
        assert isinstance(records, MixtureRecords)
        return {part.name: part for part in records.parts}

    def part_of(self, id: str) -> str:
        return id.partition("/")[0]

    def inputs_of(self, part: str, inputs: Mapping[str, T]) -> Mapping[str, T]:
        own: Mapping[str, Any] = self._parts[part].inputs
        chosen = {name: own.get(name, input) for name, input in inputs.items()}
        return {name: input for name, input in chosen.items() if input is not None}

    def fit_inputs(self, fit: Callable[[str, Any], Any], inputs: Mapping[str, Any]) -> "Mixture":
        def fitted(name: str, part: MixtureSource | None) -> MixtureSource | None:
            if part is None:
                return None
            for feature in part.inputs:
                if feature not in inputs:
                    raise UserError(f"{KEY}.{name}.inputs.{feature} is none of data.inputs, which are {_names(inputs)}")
            own = {feature: input and fit(feature, input) for feature, input in part.inputs.items()}
            _check_part(f"{KEY}.{name}", part.fields, own, inputs)
            return chz.replace(part, inputs=own)

        return chz.replace(self, sources={name: fitted(name, part) for name, part in self.sources.items()})

    def feature_records(self, records: Records, feature: str, field: str) -> "MixtureRecords":
        def reading(part: PartRecords) -> PartRecords:
            own = self._parts[part.name].inputs
            if feature not in own:
                return part
            input = own[feature]
            read = None if input is None else input.field or feature
            return part.with_fields({**part.fields, field: None if read is None else part.fields.get(read, read)})

        return MixtureRecords([reading(part) for part in self.parts(records).values()])

    def changed(self, old: Source, step: int) -> str | None:
        if not isinstance(old, Mixture):
            return super().changed(old, step)
        if any(self._parts.get(name) != part for name, part in old._parts.items()) or self.alpha != old.alpha:
            return "a run goes on with new sources and stages only"
        for name, part in self._parts.items():
            if step and name not in old._parts and part.weight != 0:
                return f"{KEY}.{name}.weight must be 0, and a stage from step {step} on may give it another"
        mine, theirs = ([stage for stage in each.stages if stage.start < step] for each in (self, old))
        if mine != theirs:
            return f"data.source.stages may change from step {step} on only, as what is before it has been read"
        return None


def _names(inputs: Mapping[str, Any]) -> str:
    return ", ".join(inputs)


def _check_part(
    key: str, fields: Mapping[str, Any], own: Mapping[str, Input | None], inputs: Mapping[str, Input]
) -> None:
    """Raises UserError where a source's inputs do not suit the shared ones, or no input reads a field."""
    for feature, input in own.items():
        shared = inputs[feature]
        if input is not None and input.feature != shared.feature:
            given = f"{key}.inputs.{feature} gives {input.feature}"
            raise UserError(f"{given}, and data.inputs.{feature} gives {shared.feature}: they must agree")
        if isinstance(input, TextInput) and isinstance(shared, TextInput) and input.tokenizer != shared.tokenizer:
            raise UserError(f"{key}.inputs.{feature}.tokenizer must be that of data.inputs.{feature}")
    every = [*inputs.items(), *((name, input) for name, input in own.items() if input is not None)]
    read = dict.fromkeys(field for name, input in every for field in input.reads(name))
    if unknown := [field for field in fields if field not in read]:
        raise UserError(f"{key}.fields.{unknown[0]} is for a field that no input reads; they read {_names(read)}")


def _exact(weights: Mapping[str, Any]) -> dict[str, Fraction]:
    """Weights as the fractions that their decimals are: 0.1 is a tenth."""
    return {name: Fraction(str(weight)) for name, weight in weights.items()}


class PartRecords:
    """The examples of one source of a mixture, with the fields that the mixture's inputs read."""

    def __init__(self, name: str, records: Records, fields: Mapping[str, str | None], cluster_field: str | None):
        self.name, self.fields = name, fields
        self.fingerprint = (
            f"{records.fingerprint}/{json.dumps(sorted(fields.items()))}" if fields else records.fingerprint
        )
        self._records, self._cluster_field = records, cluster_field

    def with_fields(self, fields: Mapping[str, str | None]) -> "PartRecords":
        """The same source with others of its fields in the place of those that inputs read."""
        return PartRecords(self.name, self._records, fields, self._cluster_field)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        whole = self._records[index]
        example = {field: value for field, value in whole.items() if field not in self.fields}
        for field, own in self.fields.items():
            lacking = Unreadable(f"it has no field {own}, which fields.{field} names; it has {', '.join(whole)}")
            example[field] = None if own is None else whole.get(own, lacking)
        if self._cluster_field is not None and self._cluster_field in whole:
            example[CLUSTER] = f"{self.name}/{whole[self._cluster_field]}"
        return example | {SOURCE: self.name}

    def id(self, index: int) -> str:
        return f"{self.name}/{self._records.id(index)}"

    def column(self, name: str) -> Iterator[Any]:
        """The values of a field, read without the others where the source can."""
        own = self.fields.get(name, name)
        if own is None or name == SOURCE:
            return itertools.repeat(self.name if name == SOURCE else None, len(self))
        return column(self._records, own)


class MixtureRecords:
    """The examples of the sources of a mixture, one source after the other."""

    def __init__(self, parts: Sequence[PartRecords]):
        self.parts = [part for part in parts if len(part)]
        about = [[part.name, part.fingerprint, sorted(part.fields.items())] for part in self.parts]
        self.fingerprint = f"mixture/{hashlib.sha256(json.dumps(about).encode()).hexdigest()}"
        self._starts = [*itertools.accumulate(map(len, self.parts), initial=0)]

    def _find(self, index: int) -> tuple[PartRecords, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"the mixture has {len(self)} examples, and no {index}")
        place = bisect.bisect_right(self._starts, index) - 1
        return self.parts[place], index - self._starts[place]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, own = self._find(index)
        return part[own]

    def id(self, index: int) -> str:
        part, own = self._find(index)
        return part.id(own)

    def column(self, name: str) -> Iterator[Any]:
        """The values of a field, source by source."""
        return itertools.chain.from_iterable(part.column(name) for part in self.parts)
