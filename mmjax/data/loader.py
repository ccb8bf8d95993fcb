"""Batches as a function of (seed, step): order, reading and prefetching, on Grain.

Only this file imports Grain, and only where it is used.
"""

import contextlib
import dataclasses
import functools
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chz
import jax
import numpy as np
from jaxtyping import Int

from mmjax.buckets import RETRIES
from mmjax.data.batching.host_batch import BadValue, HostBatch, empty_batch, filled_share, set_example, set_packed
from mmjax.data.batching.lengths import feature_lengths
from mmjax.data.batching.order import Order
from mmjax.data.batching.packing import PackedStep, Packing, arrange, rows_for, sample_windows
from mmjax.data.check import check_inputs, cut_texts
from mmjax.data.clean import BadInput, read_example
from mmjax.data.inputs import Input
from mmjax.data.prefetch import BatchIterator
from mmjax.data.sources.base import Records, Source
from mmjax.data.tokenize import Corpus, write_tokenizer
from mmjax.data.workers import end_with_parent, parse_flags, signals_kept
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.files import to_path
from mmjax.types import Batch, Feature

# Where Linux keeps what processes share, and from how many bytes on an array is worth a segment of its own.
SHARED_MEMORY, SMALLEST_SHARED = "/dev/shm", 2**16


# The values and the mask of a feature of an example, or why it cannot be used.
Found = tuple[np.ndarray, np.ndarray | None] | str


@chz.chz
class Data:
    """The source of examples, the inputs that read their fields, and loader settings."""

    source: Source = chz.field(doc="the source of examples")
    inputs: Mapping[str, Input] = chz.field(doc="how raw fields become arrays, by feature")
    packing: Packing | None = chz.field(
        default=None, doc="features whose sequences are packed in training, several in a row; None: each in its own row"
    )
    threads: int = chz.field(
        default=1, doc="threads that prepare batches ahead; 0: prepare each on request", metadata=OPERATIONAL
    )
    workers: int | None = chz.field(
        default=None,
        doc="worker processes with such threads; 0: prepare batches in this process; None: as suits the machine",
        metadata=OPERATIONAL,
    )
    prefetch: int = chz.field(default=4, doc="prefetched batches per process", metadata=OPERATIONAL)
    max_bad_share: float = chz.field(
        default=0.1, doc="largest tolerated share of unusable values of a feature", metadata=OPERATIONAL
    )

    @chz.validate
    def _valid(self) -> None:
        for name in ("threads", "workers", "prefetch"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError("max_bad_share must lie between 0 and 1")
        if not self.inputs:
            raise ValueError("inputs must not be empty")
        for name in () if self.packing is None else self.packing.features:
            if name not in self.inputs:
                raise ValueError(f"packing.features.{name} has no inputs.{name}")

    @property
    def features(self) -> dict[str, Feature]:
        """The static shape of every feature, to build models with."""
        return {name: input.feature for name, input in self.inputs.items()}

    def open(self, data_dir: str, split: str) -> Records:
        """The raw examples of a split."""
        if split not in self.source.splits:
            raise UserError(f"there is no split {split!r}: the source has {', '.join(self.source.splits)}")
        records = self.source.open(data_dir, split)
        if not len(records):
            raise UserError(
                f"the split {split!r} has no examples; the source's are {', '.join(self.source.splits)}: put some "
                "there, or divide them by data.source.split (see docs/data.md)"
            )
        return records

    def inputs_of(self, id: str) -> Mapping[str, Input]:
        """The inputs that read an example, by feature; a source of a mixture may have its own."""
        return self.source.inputs_of(self.source.part_of(id), self.inputs)

    def check_fields(self, data_dir: str) -> list[str]:
        """A line for each input that cuts some of the sampled texts.

        Raises UserError where an input cannot read a few sampled examples of a split.
        """
        lengths: dict[str, list[int]] = {}
        for split in self.source.splits:
            for part, records in self.source.parts(self.open(data_dir, split)).items():
                for name, found in check_inputs(self.source.inputs_of(part, self.inputs), records, split, part).items():
                    lengths.setdefault(name, []).extend(found)
        return [line for name, found in lengths.items() if (line := cut_texts(name, self.inputs[name], found))]

    def clusters(self, data_dir: str, split: str) -> Int[np.ndarray, "E"] | None:
        """Each example's cluster number (see `Source.cluster_field`); None where examples are independent."""
        field = self.source.cluster_field
        if field is None:
            return None
        records = self.open(data_dir, split)
        # An example whose field could not be read is a cluster of its own.
        names = [str(records[index].get(field, records.id(index))) for index in range(len(records))]
        return np.unique(names, return_inverse=True)[1]

    def fit_tokenizers(self, data_dir: str, run_dir: str | Path | None = None) -> "Data":
        """This data with its tokenizers ready: loaded from a run directory, or trained.

        They are trained on the train split and cached under `data_dir`, by the source's fingerprint. Every process gets
        the same ones.
        """
        open_train = functools.cache(lambda: self.open(data_dir, "train"))
        folder = to_path(data_dir) / "tokenizers"

        def bound(name: str, input: Input) -> Input:
            stored = None if run_dir is None else _stored(run_dir, name)
            field = self.inputs.get(name, input).field or name
            corpus = Corpus(lambda: self.source.feature_records(open_train(), name, field), field, folder)
            return input.fit_tokenizers(corpus, stored)

        inputs = {name: bound(name, input) for name, input in self.inputs.items()}
        return chz.replace(self, inputs=inputs, source=self.source.fit_inputs(bound, inputs))

    def fit_packing(self, data_dir: str, batch_size: int, steps: int) -> "Data":
        """This data with the number of rows of every packed feature, for a training of so many steps.

        It is that of some windows of steps, by the lengths of their examples under the seed 0. Raises UserError where
        rows are too short or too few.
        """
        if self.packing is None:
            return self
        self.packing.check(self.features, batch_size)
        loader = Loader(self, data_dir, "train", batch_size, seed=0)
        examples = self.packing.window_examples(batch_size)
        chosen = sample_windows(-(-steps // self.packing.window), examples)
        each = [loader.window_lengths(window) for window in chosen]
        lengths = {name: np.stack([found[name] for found in each]) for name in self.packing.features}
        return chz.replace(self, packing=rows_for(lengths, self.packing, batch_size))

    def save(self, run_dir: str | Path) -> None:
        """Saves the fitted tokenizers in a run directory, so that its evaluations use the same ones."""
        for name, input in self.inputs.items():
            stored = _stored(run_dir, name)
            if input.tokenizer_file is not None and input.tokenizer_file != stored:
                write_tokenizer(stored, input.tokenizer_file.read_text())


def _stored(run_dir: str | Path, name: str) -> Path:
    return to_path(run_dir) / "tokenizers" / f"{name}.json"


class Loader:
    """Global batch k of a split as a pure function of the seed and k.

    With a seed, for training: every epoch is a new permutation of all examples, epochs follow each other without
    padding, and the example at global position g is augmented with random numbers of (seed, g, feature). Without a
    seed, for evaluation: each of `examples` evenly spaced examples (default: all) once, in order, unaugmented, the last
    batch padded with absent rows. Nothing depends on which rows a process asks for. Pickles as its arguments.
    """

    def __init__(
        self,
        data: Data,
        data_dir: str,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        examples: int | None = None,
    ):
        """`data` has fitted tokenizers; `rows` are the rows of the global batch to load (default: all)."""
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if examples is not None and (seed is not None or examples < 1):
            raise ValueError("examples must be at least 1, and is for evaluation without a seed")
        self.data, self.data_dir, self.split, self.batch_size, self.seed = data, data_dir, split, batch_size, seed
        self.rows = np.arange(batch_size) if rows is None else np.unique(np.asarray(rows, np.int64))
        self._examples = examples
        # Evaluations read each example once, in order: nothing is dealt.
        self.packing = None if seed is None else data.packing
        if self.packing is not None and len(self.rows) % (batch_size // self.packing.parts):
            raise UserError(
                f"this process loads {len(self.rows)} examples of a batch of {batch_size}, and packed rows cannot be "
                f"split so: set data.packing.parts to a multiple of {batch_size // len(self.rows)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a worker process opens its own."""
        opened = ("records", "order", "_lengths", "_arranged")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    @functools.cached_property
    def records(self) -> Records:
        """The raw examples, opened on first use."""
        return self.data.open(self.data_dir, self.split)

    @functools.cached_property
    def order(self) -> Order:
        """The example index at each position of a training."""
        assert self.seed is not None
        return self.data.source.order(self.records, self.seed, self.step_examples)

    @property
    def examples(self) -> int:
        """The number of examples in one pass."""
        return len(self.records) if self._examples is None else min(self._examples, len(self.records))

    @property
    def steps(self) -> int:
        """The number of batches in one pass; in training the last one reaches into the next pass."""
        return -(-self.examples // self.batch_size)

    def _index(self, position: int) -> int | None:
        """The example at a global position; None beyond the end of an evaluation."""
        if self.seed is not None:
            return self.order[position]
        return position * len(self.records) // self.examples if position < self.examples else None

    def _positions(self, step: int) -> list[int]:
        """The position in the order of the example in each slot of a batch; -1: an empty slot."""
        if self.packing is not None:
            window, within = divmod(step, self.packing.window)
            start = window * self.packing.window_examples(self.batch_size)
            places = self._arranged(window)[within].places.tolist()
            return [place if place < 0 else start + place for place in places]
        return [*range(step * self.batch_size, (step + 1) * self.batch_size)]

    @property
    def step_examples(self) -> int:
        """The number of examples that a step of a training takes, on average."""
        return self.batch_size if self.packing is None else self.packing.examples or self.batch_size

    def _indices(self, positions: Sequence[int]) -> list[int | None]:
        return [None if position < 0 else self._index(position) for position in positions]

    @functools.cached_property
    def _lengths(self) -> dict[str, Int[np.ndarray, "E"]]:
        """How many positions each example takes at most, by packed feature."""
        assert self.packing is not None
        return {name: self._feature_lengths(name) for name in self.packing.features}

    def _feature_lengths(self, name: str) -> Int[np.ndarray, "E"]:
        source, found = self.data.source, []
        for part, records in source.parts(self.records).items():
            input = source.inputs_of(part, self.data.inputs).get(name)
            absent = np.zeros(len(records), np.int32)
            found.append(absent if input is None else feature_lengths(records, name, input, self.data_dir))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def window_lengths(self, window: int) -> dict[str, Int[np.ndarray, "W"]]:
        """The positions that the examples of a window of steps take, by packed feature."""
        assert self.packing is not None
        count = self.packing.window_examples(self.batch_size)
        indices = self._indices(range(window * count, (window + 1) * count))
        return {name: lengths[np.array(indices)] for name, lengths in self._lengths.items()}

    @functools.cached_property
    def _arranged(self) -> Callable[[int], list[PackedStep]]:
        """The steps of a window, kept for the steps that follow."""

        def steps(window: int) -> list[PackedStep]:
            assert self.packing is not None
            return arrange(self.window_lengths(window), self.packing, self.batch_size)

        return functools.lru_cache(2)(steps)

    def ids(self, step: int) -> tuple[str, ...]:
        """The IDs of all examples of global batch `step`, "" for padding; reads no data.

        The same on every process.
        """
        indices = self._indices(self._positions(step))
        return tuple("" if index is None else self.records.id(index) for index in indices)

    def batch(self, step: int) -> HostBatch:
        """This process's rows of global batch `step`; unusable values are absent and reported."""
        start, retries = time.perf_counter(), RETRIES.count
        positions = self._positions(step)
        indices = self._indices(positions)
        ids = tuple("" if index is None else self.records.id(index) for index in indices)
        packed = None
        if self.packing is not None:
            window, within = divmod(step, self.packing.window)
            packed = self._arranged(window)[within]
        batch, errors, cut = self._empty_batch(), [], 0
        for place, row in enumerate(self.rows.tolist()):
            index = indices[row]
            if index is None:
                continue
            for feature, found in self._read(index, ids[row], positions[row]):
                if isinstance(found, str):
                    errors.append(BadValue(index, ids[row], feature, found))
                elif packed is not None and feature in packed.rows:
                    cut += set_packed(batch, place, feature, *found, *packed.place(feature, row))
                else:
                    set_example(batch, place, feature, *found)
        seconds, retries = time.perf_counter() - start, RETRIES.count - retries
        host = HostBatch(step, self.batch_size, self.rows, batch, ids, tuple(errors), seconds, retries)
        return dataclasses.replace(host, cut=cut, fill=filled_share(batch)) if batch.packed else host

    def _empty_batch(self) -> Batch:
        return empty_batch(self.data.features, len(self.rows), self.packing, self.batch_size)

    def _read(self, index: int, id: str, position: int) -> Iterator[tuple[str, Found]]:
        """Reads each feature of an example, or why it cannot be used. None is absent, not bad."""
        inputs = self.data.inputs_of(id)
        try:
            raw = read_example(self.records, index)
        except BadInput as error:
            yield from ((name, str(error)) for name in inputs)
            return
        for name, input in inputs.items():
            try:
                value = input.take(raw, name)
                if value is None:
                    continue
                draws = input.is_random or isinstance(value, list)  # one of several texts is drawn
                values, mask = input.read(value, self._random(name, position) if draws else None)
            except BadInput as error:
                yield name, str(error)
                continue
            yield name, (values, mask)

    def _random(self, name: str, position: int) -> np.random.Generator | None:
        """The random generator of one feature at a position, independent of what else is read."""
        if self.seed is None:
            return None
        return np.random.default_rng([self.seed, position, zlib.crc32(name.encode())])

    def iterate(self, start: int, stop: int, transform: Callable[[HostBatch], Any] | None = None) -> BatchIterator:
        """Batches `start` to `stop` (exclusive), loaded ahead; `transform` is applied to each, also ahead.

        Loading starts at once, `transform` runs in this process. Closing the iterator ends its threads and processes.
        Raises Preempted where one of its processes was killed.
        """
        import grain

        data = self.data
        batches = grain.MapDataset.range(start, stop).map(self.batch)
        prefetch = max(data.prefetch, data.threads) if data.threads else 0
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=prefetch))
        if data.workers:
            parse_flags()
            options = grain.MultiprocessingOptions(
                num_workers=data.workers, per_worker_buffer_size=max(1, data.prefetch)
            )
            shared = grain.experimental.DatasetOptions(min_shm_size=self._smallest_shared_array())
            dataset = grain.experimental.WithOptionsIterDataset(dataset, shared)
            dataset = dataset.mp_prefetch(options, worker_init_fn=end_with_parent)
            # Shared memory lasts as long as its arrays, and these must not outlive this process.
            dataset = dataset.map(lambda host: jax.tree.map(np.array, host))
        if transform is not None:
            dataset = dataset.map(transform)
        with signals_kept():
            return BatchIterator(iter(dataset))

    def _smallest_shared_array(self) -> int:
        """Bytes of the smallest array that workers pass through shared memory, if it has room.

        Smaller ones, or all where it has not, are pickled, which takes longer. A container's shared memory may hold
        64 MB only, and a process that writes beyond it is killed.
        """
        size = sum(array.nbytes for array in jax.tree.leaves(self._empty_batch()))
        waiting = (self.data.workers or 0) * (self.data.prefetch + self.data.threads + 1) + 4
        with contextlib.suppress(OSError):
            if shutil.disk_usage(SHARED_MEMORY).free > 2 * waiting * size:
                return SMALLEST_SHARED
        return sys.maxsize
