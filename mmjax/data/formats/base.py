"""The base of sources that read users' files: paths, splits, names, and random access by an index."""

import abc
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chz

from mmjax.buckets import find_files, is_remote, nothing_there, version_of
from mmjax.data.formats.index import VERSION, Entries, Entry, Index, open_index
from mmjax.data.formats.media import read_below
from mmjax.data.formats.splits import Split, SplitByHash, SplitByName
from mmjax.data.mirror import data_root
from mmjax.data.sources.base import Source, Unreadable
from mmjax.errors import UserError
from mmjax.files import to_path

UNREADABLE = "$unreadable"  # the key of a reason, in the place of a value of an entry
MISSING = ("nan", "na", "n/a", "null", "none")  # what stands for a missing number, in any case
Sizes = dict[str, tuple[int, int]]
"""Bytes and versions (see `size_of`) of files by their paths below the root."""


@chz.chz
class FileSource(Source):
    """A source of a user's own files. An example's raw fields are the columns of its row, by name.

    Splits are made by names of files (train, val, test) where these say so, else by the hash of an example's name,
    unless `split` says otherwise. The index that gives random access is made once, under data_dir/indexes.
    """

    path: str = chz.field(doc="where the files are: a folder, a file, or a pattern of files with *")
    split: Split | None = chz.field(default=None, doc="how splits are made; None: by names of files, else by hash")
    key: str | None = chz.field(default=None, doc="the column that names an example; None: its place in its file")
    media: tuple[str, ...] | None = chz.field(
        default=None, doc="columns that hold names of picture or sound files; None: those whose values look so"
    )
    root: str | None = chz.field(
        default=None, doc="the folder that files named by columns must lie in; None: that of `path`"
    )

    @abc.abstractmethod
    def files(self, path: Path) -> Sizes:
        """The data files at a path, by name below it; a change of one makes a new index."""

    @abc.abstractmethod
    def entries(self, root: Path, files: Sizes) -> Iterator[Entry]:
        """All examples of the files, in order. Raises UserError, with file and row, for what cannot be read."""

    def reader(self, root: Path, files: Sizes) -> "Reader":
        """What makes raw fields of an entry's values."""
        return Reader()

    @property
    def names(self) -> list[str]:
        """The paths of the data files, below the folder."""
        return [*self._found[1]]

    @property
    def splits(self) -> tuple[str, ...]:
        names = self.names
        return self._split(names).splits(names)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return self._index(data_dir).folder

    def open(self, data_dir: str, split: str) -> "FileRecords":
        root, files = self._found
        index = self._index(data_dir)
        return FileRecords(index, split, self._media_root(root), self.reader(root, files))

    @property
    def _found(self) -> tuple[Path, Sizes]:
        """The folder of the files, and the files. Raises UserError where there are none."""
        path = to_path(self.path)
        if any(letter in path.name for letter in "*?["):
            root, found = path.parent, sorted(path.parent.glob(path.name))
            files = {each.name: size_of(each) for each in found if each.is_file()}
        elif path.is_file():
            root, files = path.parent, {path.name: size_of(path)}
        elif path.is_dir():
            root, files = path, self.files(path)
        else:
            raise UserError(f"source.path={self.path}: {nothing_there(path)}")
        if not files:
            raise UserError(f"source.path={self.path} holds no {type(self).__name__} files")
        return _real(root), files

    def _split(self, names: list[str]) -> Split:
        if self.split is not None:
            return self.split
        by_name = SplitByName()
        return by_name if "train" in by_name.splits(names) else SplitByHash()

    def _media_root(self, root: Path) -> Path:
        return root if self.root is None else _real(to_path(self.root))

    def _index(self, data_dir: str) -> Index:
        root, files = self._found
        split = self._split([*files])
        # Where the files lie does not matter, so a data set that was moved keeps its index.
        decides = [VERSION, self._decides, repr(split), sorted(files.items())]
        name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        folder = data_root(data_dir) / "indexes" / f"{root.name or 'root'}-{name}"
        return open_index(folder, functools.partial(self.entries, root, files), split, self.key, self.media)

    @property
    def _decides(self) -> str:
        """What of this source, the place apart, an index depends on."""
        return repr(chz.replace(self, path="", root=None, split=None))


def _real(folder: Path) -> Path:
    """The folder without links, which buckets do not have."""
    return folder if is_remote(folder) else Path(os.path.realpath(folder))


def size_of(path: Path) -> tuple[int, int]:
    """Bytes of a file, and its modification time or a number for its version in a bucket."""
    if is_remote(path):
        remote: Any = path
        return version_of(remote.fs.info(remote.path))
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def files_below(root: Path, suffixes: tuple[str, ...]) -> Sizes:
    """The files of some suffixes below a folder, by path; links to folders are not followed."""
    if is_remote(root):
        every = find_files(root)
        return {name: size for name, size in every.items() if name.lower().endswith(suffixes) and _is_shown(name)}
    found: Sizes = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes) and _is_shown(name):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = size_of(path)
    return found


def _is_shown(name: str) -> bool:
    return not name.rpartition("/")[2].startswith(".")


class Reader:
    """Raw fields as an entry's values hold them."""

    def __call__(self, values: dict[str, Any], only: str | None = None) -> dict[str, Any]:
        """The raw fields of one entry, or at least the one called `only`."""
        return values


class FileRecords:
    """The examples of one split of a user's files; safe in threads, picklable."""

    def __init__(self, index: Index, split: str, root: Path, read: Reader):
        self._entries, self._root, self._read = Entries(index, split), root, read
        self._media = frozenset(index.media)
        self.fingerprint = f"{index.fingerprint}/{split}"

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        values = self._read(self._entries[index][1])
        return {name: self._content(name, value) for name, value in values.items()}

    def _content(self, name: str, value: Any) -> Any:
        if isinstance(value, dict) and UNREADABLE in value:
            return Unreadable(value[UNREADABLE])
        if name not in self._media or value is None:
            return value
        return read_below(self._root, value) if isinstance(value, str) else value

    def id(self, index: int) -> str:
        return self._entries[index][0]

    def column(self, name: str) -> Iterator[Any]:
        """The values of a column, without reading files; None where an example lacks it."""
        for index in range(len(self)):
            value = self._read(self._entries[index][1], only=name).get(name)
            yield Unreadable(value[UNREADABLE]) if isinstance(value, dict) and UNREADABLE in value else value


def typed(rows: Iterator[Mapping[str, str | None]], first: int = 1000) -> Iterator[dict[str, Any]]:
    """Rows of texts with the columns that hold numbers as numbers; an empty text is None.

    What the first rows hold tells what a column is; a later text that is no number stays a text, and its input says so.
    """
    start = []
    for row in rows:
        start.append(row)
        if len(start) == first:
            break
    kinds: dict[str, type] = {}
    for name in {name for row in start for name in row}:
        texts = [text for row in start if (text := row.get(name)) and text.lower() not in MISSING]
        kinds[name] = next((kind for kind in (int, float) if texts and _all(kind, texts)), str)
    for part in (start, rows):
        for row in part:
            yield {name: _convert(kinds.get(name, str), text) for name, text in row.items()}


def _all(kind: type, texts: list[str]) -> bool:
    """Whether all texts are numbers of a kind; one with a leading zero, such as a postcode, is none."""
    return all(_convert(kind, text) is not text and not re.match(r"[+-]?0\d", text) for text in texts)


def _convert(kind: type, text: str | None) -> Any:
    if not text or (kind is not str and text.lower() in MISSING):
        return None
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        return text
