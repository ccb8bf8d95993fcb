"""Batches as a function of (seed, step): the order, the reading of rows, and prefetching, on Grain.

Grain is imported where it is used, and only in this file.
"""

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import chz
import numpy as np
from jaxtyping import Bool, Int

from mmjax.data.check import check_inputs
from mmjax.data.clean import BadInput, read_example
from mmjax.data.inputs import Input
from mmjax.data.prefetch import Batches
from mmjax.data.sources.base import Records, Source
from mmjax.data.tokenize import Corpus, store
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.files import local_path
from mmjax.types import Batch, Feature, Image, Label, Spectrogram, Text, Vector, Waveform


@chz.chz
class Data:
    """Where examples come from, what is made of their fields, and how they are read."""

    source: Source = chz.field(doc="where the examples are from")
    inputs: Mapping[str, Input] = chz.field(doc="what is made of their fields, by feature")
    threads: int = chz.field(
        default=1, doc="threads that make batches ahead; 0 makes each when it is asked for", metadata=OPERATIONAL
    )
    workers: int = chz.field(
        default=0, doc="processes with such threads; 0 makes batches in this process", metadata=OPERATIONAL
    )
    prefetch: int = chz.field(
        default=4, doc="batches made ahead, in each process that makes them", metadata=OPERATIONAL
    )
    max_bad_share: float = chz.field(
        default=0.1, doc="a run ends when more of a feature's values is unusable", metadata=OPERATIONAL
    )

    @chz.validate
    def _valid(self) -> None:
        for name in ("threads", "workers", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError("max_bad_share must lie between 0 and 1")
        if not self.inputs:
            raise ValueError("inputs must hold one or more")

    @property
    def features(self) -> dict[str, Feature]:
        """The static shape of every feature, for building models."""
        return {name: input.feature for name, input in self.inputs.items()}

    def open(self, data_dir: str, split: str) -> Records:
        """The raw examples of a split."""
        if split not in self.source.splits:
            raise UserError(f"there is no split {split!r}: the source has {', '.join(self.source.splits)}")
        records = self.source.open(data_dir, split)
        if not len(records):
            raise UserError(f"the split {split!r} has no examples")
        return records

    def check_fields(self, data_dir: str) -> None:
        """Raise UserError where an input can read nothing of a split, by a look at a few of its examples."""
        for split in self.source.splits:
            check_inputs(self.inputs, self.open(data_dir, split), split)

    def clusters(self, data_dir: str, split: str) -> Int[np.ndarray, "E"] | None:
        """The number of the cluster that each example of a split is in (see `Source.cluster`); None: there are none."""
        field = self.source.cluster
        if field is None:
            return None
        records = self.open(data_dir, split)
        # An example whose field could not be read is a cluster of its own.
        names = [str(records[index].get(field, records.id(index))) for index in range(len(records))]
        return np.unique(names, return_inverse=True)[1]

    def fit_tokenizers(self, data_dir: str, run_dir: str | Path | None = None) -> "Data":
        """This data with its tokenizers ready: those that `save` left in a run directory, else trained.

        They are trained on the train split. What is learned is kept under `data_dir`, by the source's
        fingerprint, and is the same in every process.
        """
        open_train = functools.cache(lambda: self.open(data_dir, "train"))
        folder = local_path(data_dir) / "tokenizers"

        def bound(name: str, input: Input) -> Input:
            stored = None if run_dir is None else _stored(run_dir, name)
            return input.fit_tokenizers(Corpus(open_train, input.field or name, folder), stored)

        return chz.replace(self, inputs={name: bound(name, input) for name, input in self.inputs.items()})

    def save(self, run_dir: str | Path) -> None:
        """Keeps what `fit_tokenizers` trained in a run directory, so that its evaluations use the same."""
        for name, input in self.inputs.items():
            stored = _stored(run_dir, name)
            if input.learned is not None and input.learned != stored:
                store(stored, input.learned.read_text())


def _stored(run_dir: str | Path, name: str) -> Path:
    return local_path(run_dir) / "tokenizers" / f"{name}.json"


@dataclasses.dataclass(frozen=True)
class DataError:
    """A value that could not be used: feature `feature` of example `index`, called `id`, and why."""

    index: int
    id: str
    feature: str
    reason: str


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of global batch `step` that one process materialises, as NumPy arrays.

    `rows` are their places in the global batch of `size`, ascending; `ids` names all examples of the *global* batch, ""
    where there is none because an evaluation has come to its end. `seconds` is what making it took.
    """

    step: int
    size: int
    rows: Int[np.ndarray, "R"]
    batch: Batch
    ids: tuple[str, ...]
    errors: tuple[DataError, ...]
    seconds: float

    @property
    def real(self) -> Bool[np.ndarray, "R"]:
        """Which of the rows are examples and no padding."""
        return np.array([bool(self.ids[row]) for row in self.rows], bool)


class Loader:
    """Global batch k of a split as a pure function of the seed and k.

    With a seed, for training: every epoch is a new order of all examples, the epochs follow each other without a seam,
    and the example at global position g is augmented by random numbers of (seed, g, feature). Without, for evaluation:
    each of `examples` evenly spread examples (all, by default) once, in order, unaugmented, the last batch padded with
    absent rows. Nothing depends on which rows a process asks for. Pickles as its arguments.
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
        """`data` is bound; `rows` are the places in the global batch that `batch` fills, all by default."""
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} examples: it needs at least one")
        if examples is not None and (seed is not None or examples < 1):
            raise ValueError("`examples` is 1 or more and for evaluation, which has no seed")
        self.data, self.data_dir, self.split, self.batch_size, self.seed = data, data_dir, split, batch_size, seed
        self.rows = np.arange(batch_size) if rows is None else np.unique(np.asarray(rows, np.int64))
        self._examples = examples

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: a worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("records", "_order")}

    @functools.cached_property
    def records(self) -> Records:
        """The raw examples, opened when first asked for."""
        return self.data.open(self.data_dir, self.split)

    @functools.cached_property
    def _order(self) -> Any:
        """Sequence of the index of the example at each global position."""
        import grain

        indices = grain.MapDataset.range(len(self.records))
        if self.seed is None:
            return range(len(self.records))
        # Grain takes a 32-bit seed and adds the epoch to it; hashed, runs of neighbouring seeds do not share epochs.
        seed = int(np.random.SeedSequence([self.seed, zlib.crc32(b"order")]).generate_state(1)[0])
        return indices.shuffle(seed=seed).repeat()

    @property
    def examples(self) -> int:
        """How many examples one pass has."""
        return len(self.records) if self._examples is None else min(self._examples, len(self.records))

    @property
    def steps(self) -> int:
        """How many batches hold one pass; in training the last reaches into the next."""
        return -(-self.examples // self.batch_size)

    def _index(self, position: int) -> int | None:
        """Which example stands at a global position; None beyond the end of an evaluation."""
        if self.seed is not None:
            return int(self._order[position])
        return position * len(self.records) // self.examples if position < self.examples else None

    def _indices(self, step: int) -> list[int | None]:
        start = step * self.batch_size
        return [self._index(position) for position in range(start, start + self.batch_size)]

    def ids(self, step: int) -> tuple[str, ...]:
        """Names of all examples of global batch `step`, "" for padding, the same on every process; reads no data."""
        return tuple("" if index is None else self.records.id(index) for index in self._indices(step))

    def batch(self, step: int) -> HostBatch:
        """This process's rows of global batch `step`; an unusable value is absent and reported."""
        start = time.perf_counter()
        indices = self._indices(step)
        ids = tuple("" if index is None else self.records.id(index) for index in indices)
        batch, errors = empty_batch(self.data.features, len(self.rows)), []
        for place, row in enumerate(self.rows):
            index = indices[row]
            if index is None:
                continue
            for feature, reason in self._read(batch, place, index, step * self.batch_size + int(row)):
                errors.append(DataError(index, ids[row], feature, reason))
        seconds = time.perf_counter() - start
        return HostBatch(step, self.batch_size, self.rows, batch, ids, tuple(errors), seconds)

    def _read(self, batch: Batch, place: int, index: int, position: int) -> Iterator[tuple[str, str]]:
        """Fills one row; yields features that cannot be used, and why. A field that is None is absent and not wrong."""
        try:
            raw = read_example(self.records, index)
        except BadInput as error:
            yield from ((name, str(error)) for name in self.data.inputs)
            return
        for name, input in self.data.inputs.items():
            field = input.field or name
            try:
                if field not in raw:
                    raise BadInput(f"the field {field!r} is missing")
                if raw[field] is None:
                    continue
                values, mask = input.read(raw[field], self._random(name, position) if input.random else None)
            except BadInput as error:
                yield name, str(error)
                continue
            set_example(batch, place, name, values, mask)

    def _random(self, name: str, position: int) -> np.random.Generator | None:
        """Random numbers of one feature of the example at a position: whatever else is read does not change them."""
        if self.seed is None:
            return None
        return np.random.default_rng([self.seed, position, zlib.crc32(name.encode())])

    def iterate(self, start: int, stop: int, then: Callable[[HostBatch], Any] | None = None) -> Batches:
        """Batches `start` to `stop` (not included), made ahead; `then` is applied to each, also ahead, in this process.

        They are begun on at once. Closing the iterator ends its threads and processes. It raises Preempted where one of
        its processes was killed.
        """
        import grain

        data = self.data
        batches = grain.MapDataset.range(start, stop).map(self.batch)
        prefetch = max(data.prefetch, data.threads) if data.threads else 0
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=prefetch))
        if data.workers:
            _parse_flags()
            options = grain.MultiprocessingOptions(
                num_workers=data.workers, per_worker_buffer_size=max(1, data.prefetch)
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)
        if then is not None:
            dataset = dataset.map(then)
        with _signals_kept():
            return Batches(iter(dataset))


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Threads and processes started inside never see SIGTERM and SIGINT, whoever those are sent to.

    Ending them is this process's to do: a worker that a signal to the whole group ended would be waited for in vain.
    """
    resource_tracker.ensure_running()  # its start would unblock the signals in the thread that starts the workers
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """Has this worker end when the process that started it is gone, which may have been killed without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _parse_flags() -> None:
    """Grain sends absl's flags to its workers and refuses to if absl's own main function did not read any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def empty_batch(features: Mapping[str, Feature], rows: int) -> Batch:
    """A batch in which everything is absent."""
    values, mask = {}, {}
    for name, feature in features.items():
        shape, dtype = _shape(feature)
        values[name] = np.zeros((rows, *shape), dtype)
        if not isinstance(feature, Image):
            mask[name] = np.zeros((rows, shape[0]), bool)
    return Batch(values, mask, {name: np.zeros(rows, bool) for name in features})


def set_example(batch: Batch, place: int, name: str, values: np.ndarray, mask: np.ndarray | None) -> None:
    """Gives the example at `place` of a batch of NumPy arrays a feature, as `Input.read` reads it."""
    batch.values[name][place] = values
    if mask is not None:
        batch.mask[name][place] = mask
    batch.present[name][place] = True


def _shape(feature: Feature) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape without the batch, and type, of a feature's values."""
    match feature:
        case Image(height, width, channels):
            return (height, width, channels), np.float32
        case Text(length, _):
            return (length,), np.int32
        case Spectrogram(frames, bands, _):
            return (frames, bands), np.float32
        case Waveform(samples, _):
            return (samples,), np.float32
        case Label(_, slots):
            return (slots,), np.int32
        case Vector(size, slots):
            return (slots, size), np.float32
    raise TypeError(f"{feature} is no feature")


def chain(digest: str, ids: Sequence[str]) -> str:
    """SHA-256 over the digest of what came before ("" at first) and the names of a batch, in hexadecimal."""
    return hashlib.sha256("\n".join([digest, *ids]).encode()).hexdigest()


class BadValueMonitor:
    """Counts the values read and the unusable ones by feature, and ends a run in which they are too many."""

    # So many values are looked at before a share is taken: one bad value in a first batch of four says little.
    LEAST = 256

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
            if bad > self.max_bad_share * max(read, self.LEAST):
                raise UserError(
                    f"{bad} of {read} values of {error.feature!r} cannot be used, the last one, of {error.id}, because "
                    f"{error.reason}: mend the data, or raise data.max_bad_share, which is {self.max_bad_share}"
                )
