"""An index of a user's files: the examples of each split, made once and then memory-mapped.

An entry is a line of JSON, so that ten million examples need no memory; an array of offsets gives access to any.
"""

import array
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.buckets import is_remote, read_range, version_of
from mmjax.data import mirror
from mmjax.data.formats.media import is_media
from mmjax.data.formats.splits import SPLITS, Split, hash_of
from mmjax.errors import UserError
from mmjax.files import explained

VERSION = 1
LOOKED_AT = 100  # values of a column that tell what it holds
QUIET_SECONDS = 2.0  # until then no progress is shown
META = "index.json"


class Entry(NamedTuple):
    """An example: the file that holds it, a name for it there, and values that JSON can hold."""

    file: str
    place: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of all examples."""

    folder: Path
    fingerprint: str
    counts: dict[str, int]
    media: tuple[str, ...]
    """The columns whose texts are names of files."""


def open_index(
    folder: Path, entries: Callable[[], Iterator[Entry]], split: Split, key: str | None, media: Sequence[str] | None
) -> Index:
    """The index in a folder, which is made first where there is none: whole or not at all.

    Args:
        entries: yields all examples in order.
        key: the column that names an example; None: its place does.
        media: the columns that are names of files; None: those whose first values end as such names do.

    Raises UserError for two examples of one name, and for a key that an example lacks.
    """
    build_folder(folder, META, lambda partial: _build(partial, entries(), split, key, media, folder.name))
    meta = json.loads((folder / META).read_text())
    return Index(folder, meta["fingerprint"], meta["counts"], tuple(meta["media"]))


def build_folder(folder: Path, last: str, build: Callable[[Path], None]) -> None:
    """Builds a folder by `build(partial)`, whole or not at all, unless it is there with the file `last`."""
    mirror.download(folder)
    if (folder / last).is_file():
        return
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            build(partial)
            with contextlib.suppress(OSError):  # another process was first, with the same
                os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    mirror.upload(folder)


def _build(
    folder: Path, entries: Iterator[Entry], split: Split, key: str | None, media: Sequence[str] | None, name: str
) -> None:
    from tqdm import tqdm

    start = list(itertools.islice(entries, LOOKED_AT))
    if media is None:
        media = _media_columns(start)
    offsets = {name: array.array("q", [0]) for name in SPLITS}
    hashes = array.array("Q")
    digest = hashlib.sha256()
    everything = itertools.chain(start, entries)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in SPLITS}
        # Shown where it takes long: how many there are is not known before.
        for entry in tqdm(everything, f"indexing {name}", unit=" examples", delay=QUIET_SECONDS, mininterval=1):
            id = entry.place if key is None else _key(entry, key)
            hashes.append(hash_of(id))
            place = split.assign(entry.file, id, entry.values)
            if place is not None:
                line = json.dumps([id, entry.values], ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                files[place].write(line)
                offsets[place].append(offsets[place][-1] + len(line))
                digest.update(f"{place} {len(line)} ".encode() + line)
    for place, starts in offsets.items():
        np.save(folder / f"{place}.npy", np.frombuffer(starts, np.int64))
    _check_unique(folder, np.frombuffer(hashes, np.uint64))
    meta = {
        "version": VERSION,
        "fingerprint": digest.hexdigest(),
        "counts": {place: len(starts) - 1 for place, starts in offsets.items()},
        "media": list(media),
    }
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n")


def _media_columns(entries: Sequence[Entry]) -> list[str]:
    """The columns all of whose texts name pictures or recordings."""
    columns: dict[str, list[Any]] = {}
    for entry in entries:
        for name, value in entry.values.items():
            if value is not None:
                columns.setdefault(name, []).append(value)
    return [name for name, values in columns.items() if all(map(is_media, values))]


def _key(entry: Entry, key: str) -> str:
    value = entry.values.get(key)
    if value is None or isinstance(value, list | dict):
        have = ", ".join(entry.values)
        raise UserError(f"{entry.place} has no {key!r} that could name it (key={key}); it has {have}")
    return str(value)


def _check_unique(folder: Path, hashes: np.ndarray) -> None:
    """Raises UserError where two examples have one name."""
    ordered = np.sort(hashes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return
    seen = int(twice[0])
    for place in SPLITS:
        with (folder / f"{place}.jsonl").open("rb") as file:
            for line in file:
                id = json.loads(line)[0]
                if hash_of(id) == seen:
                    raise UserError(f"{len(twice) + 1} examples share the name {id}; name them by another key")


class Entries:
    """Random access to the index of one split; safe in threads, picklable."""

    def __init__(self, index: Index, split: str):
        self.index, self.split = index, split
        self._open()

    def _open(self) -> None:
        self._offsets = np.load(self.index.folder / f"{self.split}.npy", mmap_mode="r")
        # Closed with this object: descriptors of threads are no problem for reads at a position.
        self._file = (self.index.folder / f"{self.split}.jsonl").open("rb")

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
        """The name and the values of an example."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        id, values = json.loads(os.pread(self._file.fileno(), stop - start, start))
        return id, values


class FileCache:
    """Open files read at a position, the least recently used closed first; safe in threads, picklable."""

    MOST = 64

    def __init__(self, root: Path, sizes: dict[str, tuple[int, int]]):
        """`sizes` are bytes and versions of the files when they were indexed."""
        self.root, self.sizes = root, sizes
        self._files: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "sizes": self.sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file. Raises UserError where it is not the file that was indexed."""
        if is_remote(self.root):
            return self._read_remote(name, offset, size)
        with self._lock:
            file = self._files.pop(name, None) or (self.root / name).open("rb")
            while len(self._files) >= self.MOST:
                self._files.pop(next(iter(self._files)))  # closed when no thread reads it any more
            self._files[name] = file
        found = os.fstat(file.fileno())
        self._check_unchanged(name, (found.st_size, found.st_mtime_ns))
        return os.pread(file.fileno(), size, offset)

    def _read_remote(self, name: str, offset: int, size: int) -> bytes:
        """As `read`, in one request; the object's version is looked up once."""
        path: Any = self.root / name
        if name not in self._files:
            self._check_unchanged(name, version_of(path.fs.info(path.path)))
            self._files[name] = True
        return read_range(path, offset, offset + size) if size else b""

    def _check_unchanged(self, name: str, found: tuple[int, int]) -> None:
        if found != tuple(self.sizes[name]):
            raise UserError(f"{self.root / name} was changed since it was indexed; start the command again")
