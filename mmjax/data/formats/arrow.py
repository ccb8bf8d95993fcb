"""Parquet files, and Arrow files as Hugging Face's `datasets` saves them; rows are read on demand."""

import abc
import collections
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz

from mmjax.buckets import is_remote, open_bytes
from mmjax.data.clean import BadInput
from mmjax.data.formats.base import FileSource, Reader, Sizes, files_below, size_of
from mmjax.data.formats.index import Entry
from mmjax.data.formats.media import read_below
from mmjax.errors import UserError
from mmjax.files import read_json, read_regular

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "$row"
CACHED_BYTES = 2**28  # of decoded row groups, in each process


def import_pyarrow() -> Any:
    """pyarrow with its reader of Parquet, imported when it is first used."""
    import pyarrow.parquet

    return pyarrow


class _ColumnFile(abc.ABC):
    """A file of groups of rows; safe in threads."""

    schema: "pa.Schema"
    groups: int

    @abc.abstractmethod
    def read(self, group: int, columns: list[str] | None = None) -> "pa.Table | pa.RecordBatch":
        """A group's rows."""


class _ParquetFile(_ColumnFile):
    def __init__(self, path: Path):
        pq = import_pyarrow().parquet
        # What is read of a bucket is what row groups and columns take, and not each of their pages alone.
        self._file = (
            pq.ParquetFile(open_bytes(path), pre_buffer=True)
            if is_remote(path)
            else pq.ParquetFile(path, memory_map=True)
        )
        self.schema, self.groups = self._file.schema_arrow, self._file.num_row_groups
        self._lock = threading.Lock()

    def read(self, group: int, columns: list[str] | None = None) -> "pa.Table":
        with self._lock:
            return self._file.read_row_group(group, columns, use_threads=False)


class _ArrowFile(_ColumnFile):
    def __init__(self, path: Path):
        pa = import_pyarrow()
        with pa.BufferReader(read_regular(path)) if is_remote(path) else pa.memory_map(os.fspath(path)) as file:
            try:
                reader = pa.ipc.open_stream(file)
                self._batches = [*reader]
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(file)
                self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.schema, self.groups = reader.schema, len(self._batches)

    def read(self, group: int, columns: list[str] | None = None) -> "pa.RecordBatch":
        batch = self._batches[group]
        return batch if columns is None else batch.select(columns)


class _ColumnSource(FileSource):
    """What Parquet and Arrow files share."""

    @staticmethod
    @abc.abstractmethod
    def open_file(path: Path) -> _ColumnFile:
        """A file opened by its format."""

    def entries(self, root: Path, files: Sizes) -> Iterator[Entry]:
        wanted = {*(self.split.columns if self.split is not None else ()), *([] if self.key is None else [self.key])}
        for name in files:
            with _explained(root / name):
                opened = self.open_file(root / name)
                missing = wanted.difference(opened.schema.names)
                if missing:
                    have = ", ".join(opened.schema.names)
                    raise UserError(f"{root / name} has no column {missing.pop()!r}; it has {have}")
                convert = _Converter(opened.schema, root)
                number = 0
                for group in range(opened.groups):
                    rows = opened.read(group, sorted(wanted))
                    values = rows.to_pylist() if wanted else [{}] * rows.num_rows
                    for row, value in enumerate(values):
                        yield Entry(name, f"{name}:{number}", {**convert(value), ROW: [name, group, row]})
                        number += 1

    def reader(self, root: Path, files: Sizes) -> Reader:
        return ColumnReader(root, self._media_root(root), files, type(self).open_file)


@chz.chz
class Parquet(_ColumnSource):
    """Parquet files: columns are raw fields, row groups are read on demand.

    Columns of {bytes, path}, as Hugging Face writes pictures and sounds, are their content. Reading in random order
    is as fast as row groups are small: those of 256 MiB are kept. Labels with names are these names.
    """

    def files(self, path: Path) -> Sizes:
        return files_below(path, (".parquet",))

    @staticmethod
    def open_file(path: Path) -> _ColumnFile:
        return _ParquetFile(path)


@chz.chz
class HuggingFace(_ColumnSource):
    """A data set saved to disk or cached by the library `datasets`, which is not needed to read it.

    Arrow files are mapped into memory, so random access costs little. Splits are by the names of folders or files.
    """

    def files(self, path: Path) -> Sizes:
        for state in path.rglob("state.json"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if read_json(state).get("_indices_files"):
                    raise UserError(f"{state.parent} holds a selection of rows: save it after flatten_indices()")
        return {
            name: size
            for name, size in files_below(path, (".arrow",)).items()
            if not Path(name).name.startswith(("cache-", "indices-"))
        }

    @staticmethod
    def open_file(path: Path) -> _ColumnFile:
        return _ArrowFile(path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into a UserError."""
    pa = import_pyarrow()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({reason}): get or write the file again") from None


class _Converter:
    """Values of Arrow's types as raw fields."""

    def __init__(self, schema: "pa.Schema", root: Path):
        self._root = root
        self._labels: dict[str, list[str]] = {}
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
            self._labels = {
                name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"
            }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: self._convert(name, value) for name, value in row.items()}

    def _convert(self, name: str, value: Any) -> Any:
        if isinstance(value, dict) and {*value} == {"bytes", "path"}:
            content, path = value["bytes"], value["path"]
            return content if content is not None or path is None else read_below(self._root, path)
        names = self._labels.get(name)
        if names is not None and isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return value


class ColumnReader(Reader):
    """Reads rows of groups, of which the last ones used are kept; safe in threads, picklable."""

    def __init__(self, root: Path, media_root: Path, files: Sizes, open_file: Any):
        self._root, self._media_root, self._sizes, self._open_file = root, media_root, files, open_file
        self._clear()

    def _clear(self) -> None:
        self._files: dict[str, tuple[_ColumnFile, _Converter]] = {}
        self._groups: collections.OrderedDict[tuple[str, int, str | None], Any] = collections.OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_root", "_media_root", "_sizes", "_open_file")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def __call__(self, values: dict[str, Any], only: str | None = None) -> dict[str, Any]:
        name, group, row = values[ROW]
        file, convert = self._open(name)
        return convert(self._group(name, file, group, only).slice(row, 1).to_pylist()[0])

    def _open(self, name: str) -> tuple[_ColumnFile, _Converter]:
        with self._lock:
            if name not in self._files:
                path = self._root / name
                if size_of(path) != tuple(self._sizes[name]):
                    raise UserError(f"{path} was changed since it was indexed; start the command again")
                with _explained(path):
                    file = self._open_file(path)
                self._files[name] = file, _Converter(file.schema, self._media_root)
            return self._files[name]

    def _group(self, name: str, file: _ColumnFile, group: int, only: str | None) -> Any:
        key = name, group, only
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        try:
            rows = file.read(group, None if only is None else [only])
        except Exception as error:  # pyarrow has many for a damaged group
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"row group {group} of {self._root / name} cannot be read ({reason})") from error
        with self._lock:
            if key not in self._groups:
                self._groups[key] = rows
                self._held += rows.nbytes
            while self._held > CACHED_BYTES and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        return rows
