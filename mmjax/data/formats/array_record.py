"""ArrayRecord: converted data sets, with checksums; and the conversion of any source to it."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.buckets import local_copy
from mmjax.compilation import usable_cores
from mmjax.data.clean import BadInput, read_example
from mmjax.data.mirror import data_root
from mmjax.data.sources.base import Recording, Records, Source, Unreadable
from mmjax.errors import UserError
from mmjax.files import explained, local_path, open_regular, read_json, to_path, write_atomic

META = "dataset.json"
FORMAT = 1
SHARD = 4096  # examples in a file


@chz.chz
class ArrayRecord(Source):
    """A data set that `prepare convert` wrote: ArrayRecord files with SHA-256 checksums."""

    path: str = chz.field(doc="the folder that `prepare convert` wrote")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._meta["splits"])

    @property
    def _meta(self) -> dict[str, Any]:
        path = to_path(self.path) / META
        try:
            meta = read_json(path)
            if meta["format"] != FORMAT or not isinstance(meta["splits"], dict):
                raise ValueError(f"its format is {meta['format']}, and {FORMAT} is read")
        except FileNotFoundError:
            raise UserError(f"{path} is missing: `prepare convert` writes it when all is converted") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): convert the data set again") from None
        return meta

    def open(self, data_dir: str, split: str) -> Records:
        meta = self._meta
        return ArrayRecords(self._local(data_dir), meta["splits"][split], f"{meta['digest']}/{split}")

    def _local(self, data_dir: str) -> Path:
        """The folder, or where its copy is: the reader of ArrayRecord reads local files only."""
        return local_copy(to_path(self.path), data_root(data_dir) / "copies")

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        """Checks the checksums of all files; returns the folder."""
        folder = self._local(data_dir)
        for shards in self._meta["splits"].values():
            for shard in shards:
                if _sha256(folder / shard["file"]) != shard["sha256"]:
                    raise UserError(f"{folder / shard['file']} is damaged: convert the data set again")
        return folder


class ArrayRecords:
    """The examples of one split of a converted data set; safe in threads, picklable."""

    def __init__(self, folder: Path, shards: Sequence[dict[str, Any]], fingerprint: str):
        self.folder, self.shards, self.fingerprint = folder, shards, fingerprint
        self._open()

    def _open(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        paths = [self.folder / shard["file"] for shard in self.shards]
        for path, shard in zip(paths, self.shards, strict=True):
            with explained_read(path), open_regular(path) as file:
                if os.fstat(file.fileno()).st_size != shard["bytes"]:
                    raise UserError(f"{path} is damaged: convert the data set again")
        self._source = ArrayRecordDataSource([os.fspath(path) for path in paths]) if paths else []
        self._ids = [np.load(self.folder / f"{shard['file']}.ids.npy", mmap_mode="r") for shard in self.shards]
        self._starts = np.cumsum([0, *(shard["examples"] for shard in self.shards)])

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("folder", "shards", "fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return decode(self._source[index])

    def id(self, index: int) -> str:
        shard = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._ids[shard][index - self._starts[shard]].decode()


@contextlib.contextmanager
def explained_read(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


KINDS = "$kinds"
"""The feature that says, as JSON, what the others hold, by name."""


def encode(example: dict[str, Any]) -> bytes:
    """Raw fields as a tf.train.Example, a feature a field; a field that is None is absent."""
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    features = message.features.feature
    kinds: dict[str, Any] = {}
    for name, value in example.items():
        array = value.samples if isinstance(value, Recording) else value
        if isinstance(array, np.ndarray):
            kinds[name] = {"dtype": str(array.dtype), "shape": array.shape}
            kinds[name] |= {"rate": value.rate} if isinstance(value, Recording) else {}
            features[name].bytes_list.value.append(array.tobytes())
        elif isinstance(value, Unreadable):
            kinds[name] = "unreadable"
            features[name].bytes_list.value.append(value.reason.encode())
        elif value is not None:
            kinds[name] = _add(features[name], value)
    features[KINDS].bytes_list.value.append(json.dumps(kinds).encode())
    return message.SerializeToString(deterministic=True)


def _add(feature: Any, value: Any) -> str | list[str]:
    """Adds bytes, text, an integer, a list of these, or JSON; returns its kind, a list for a list."""
    many = isinstance(value, list | tuple)
    values = list(value) if many else [value]
    if all(isinstance(each, bytes) for each in values):
        kind = "bytes"
        feature.bytes_list.value.extend(values)
    elif all(isinstance(each, str) for each in values):
        kind = "text"
        feature.bytes_list.value.extend(each.encode() for each in values)
    elif all(type(each) is int for each in values):
        kind = "int"
        feature.int64_list.value.extend(values)
    else:  # floats, which float_list would round, and what else JSON can say
        feature.bytes_list.value.append(json.dumps(value).encode())
        return "json"
    return [kind] if many else kind


def decode(content: bytes) -> dict[str, Any]:
    """The raw fields that `encode` wrote."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(content).features.feature
    example: dict[str, Any] = {}
    for name, kind in json.loads(features[KINDS].bytes_list.value[0]).items():
        feature = features[name]
        values = list(feature.bytes_list.value or feature.int64_list.value)
        if isinstance(kind, dict):
            array = np.frombuffer(values[0], np.dtype(kind["dtype"])).reshape(kind["shape"])
            example[name] = Recording(array, kind["rate"]) if "rate" in kind else array
        elif kind == "unreadable":
            example[name] = Unreadable(values[0].decode())
        elif kind == "json":
            example[name] = json.loads(values[0])
        else:
            each = [value.decode() for value in values] if kind in ("text", ["text"]) else values
            example[name] = each if isinstance(kind, list) else each[0]
    return example


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a split to be written."""

    split: str
    number: int
    start: int
    stop: int

    def file(self, count: int) -> str:
        """Its name among as many shards of its split."""
        return f"{self.split}-{self.number:05d}-of-{count:05d}.array_record"


def convert(source: Source, data_dir: str, out: str | Path, *, workers: int | None = None) -> Path:
    """Write every split of a source as ArrayRecord files; returns the folder.

    Shards that were written before are kept. Shards are written by as many processes as there are cores. The digest
    is the SHA-256 of the shards' own. Raises UserError where the folder holds another data set.
    """
    from tqdm import tqdm

    folder = local_path(out)
    opened = {split: source.open(data_dir, split) for split in source.splits}
    records = {split: each for split, each in opened.items() if len(each)}
    origin = {split: each.fingerprint for split, each in records.items()}
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, origin)
    tasks: dict[str, list[Shard]] = {}
    for split, each in records.items():
        starts = range(0, len(each), SHARD)
        tasks[split] = [Shard(split, number, at, min(at + SHARD, len(each))) for number, at in enumerate(starts)]
    todo = [(shard, shard.file(len(shards))) for shards in tasks.values() for shard in shards]
    todo = [(shard, file) for shard, file in todo if not (folder / f"{file}.json").is_file()]
    total = sum(len(each) for each in records.values())
    done = total - sum(shard.stop - shard.start for shard, _ in todo)
    with (
        tqdm(total=total, initial=done, unit="example", file=sys.stderr, disable=not todo) as progress,
        _executor(min(workers or usable_cores(), len(todo)) if total > SHARD else 1) as pool,
    ):
        jobs = {pool.submit(_write, source, data_dir, folder, shard, file): shard for shard, file in todo}
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                progress.update(jobs[job].stop - jobs[job].start)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    splits = {
        split: [read_json(folder / f"{shard.file(len(shards))}.json") for shard in shards]
        for split, shards in tasks.items()
    }
    digest = hashlib.sha256("".join(each["sha256"] for shards in splits.values() for each in shards).encode())
    meta = {"format": FORMAT, "digest": digest.hexdigest(), "origin": origin, "splits": splits}
    write_atomic(folder / META, json.dumps(meta, indent=2) + "\n")
    if unreadable := sum(each["unreadable"] for shards in splits.values() for each in shards):
        print(f"{unreadable:,} of {total:,} examples cannot be read, and are so in the copy, too", file=sys.stderr)
    return folder


def _executor(workers: int) -> concurrent.futures.Executor:
    """Processes that write shards; instead of one, a thread, which starts at once."""
    if workers <= 1:
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _claim(folder: Path, origin: dict[str, str]) -> None:
    """Notes of what the folder is to be a conversion."""
    path = folder / "origin.json"
    if path.is_file():
        if read_json(path) != origin:
            raise UserError(f"{folder} holds a conversion of other data: choose another out, or delete it")
    elif any(folder.iterdir()):
        raise UserError(f"{folder} holds other files: choose another out, or an empty folder")
    write_atomic(path, json.dumps(origin, indent=2) + "\n")


def _write(source: Source, data_dir: str, folder: Path, shard: Shard, file: str) -> None:
    """Writes a shard, its examples' names, and at the end what it holds, each whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    records = source.open(data_dir, shard.split)
    partial = folder / f".{file}.{os.getpid()}.partial"
    ids, unreadable = [], 0
    try:
        writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")
        for index in range(shard.start, shard.stop):
            try:
                example = read_example(records, index)
            except BadInput:
                example = {}
            unreadable += not example or any(isinstance(value, Unreadable) for value in example.values())
            writer.write(encode(example))
            ids.append(records.id(index).encode())
        writer.close()
        about = {
            "file": file,
            "examples": shard.stop - shard.start,
            "unreadable": unreadable,
            "bytes": partial.stat().st_size,
            "sha256": _sha256(partial),
        }
        with (folder / f"{file}.ids.npy").open("wb") as stream:
            np.save(stream, np.array(ids, "S"))
        os.replace(partial, folder / file)
        write_atomic(folder / f"{file}.json", json.dumps(about) + "\n")
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with explained_read(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
