"""A file of lines that grows at its end, on a disk or in a bucket."""

import errno
import os
from pathlib import Path
from typing import Any

from mmjax.buckets import is_remote
from mmjax.files import explained, read_regular, write_atomic

MOST_PARTS = 200


class GrowingFile:
    """Appends to a file with one writer. A process that is killed loses what it was writing at most.

    An object of a bucket cannot grow. What comes after it lies in parts, `PATH.parts/OFFSET`, each named after where it
    begins, and is put together with it when there are many, and at the end.
    """

    def __init__(self, path: Path, last: int = 0):
        """`last` are the bytes of the last line there. Raises UserError where the file cannot be written."""
        self.path = path
        self._file: Any = None
        with explained(path):
            if is_remote(path):
                self._parts = _parts(path)
                self._size = len(read_growing(path))
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)
                self._size = self._file.tell()
        self._last = self._size - last

    def append(self, line: bytes) -> None:
        """Writes a line at the end."""
        self._last = self._size
        self._write(line)

    def replace_last(self, line: bytes) -> None:
        """Writes a line in the place of the one that was appended last."""
        if self._file is not None:
            with explained(self.path):
                os.truncate(self.path, self._last)
        elif self._last not in self._parts:
            write_atomic(self.path, read_growing(self.path)[: self._last])
        self._size = self._last
        self._write(line)

    def _write(self, line: bytes) -> None:
        with explained(self.path):
            if self._file is None:
                part = _folder(self.path) / f"{self._size:015d}"
                part.write_bytes(line)
                self._parts[self._size] = part
            elif self._file.write(line) != len(line):  # one unbuffered write
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)
        if self._file is None and len(self._parts) > MOST_PARTS:
            # All but the last line, which may still be replaced.
            whole = read_growing(self.path)
            done = {at: part for at, part in self._parts.items() if at < self._last}
            _consolidate(self.path, whole[: self._last], done)
            self._parts = {at: part for at, part in self._parts.items() if at not in done}

    def close(self) -> None:
        """Closes the file; parts become one object."""
        if self._file is not None:
            self._file.close()
        elif self._parts:
            _consolidate(self.path, read_growing(self.path), self._parts)
            self._parts = {}


def read_growing(path: Path) -> bytes:
    """The content of a file that grows, with its parts in order; empty where there is none."""
    if not is_remote(path):
        return read_regular(path) if path.exists() else b""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    for offset, part in sorted(_parts(path).items()):
        # One that was put together with the file already, by a process that was killed then, is left out.
        if offset >= len(content):
            content = content + part.read_bytes()
    return content


def has_content(path: Path) -> bool:
    """Whether such a file is there and not empty."""
    return (path.exists() and path.stat().st_size > 0) or (is_remote(path) and bool(_parts(path)))


def rewrite_growing(path: Path, content: bytes) -> None:
    """Writes the file again, as after cutting it."""
    if is_remote(path) and (parts := _parts(path)):
        # First whole, so that no part of the old content can follow the new one.
        _consolidate(path, read_growing(path), parts)
    write_atomic(path, content)


def _consolidate(path: Path, content: bytes, parts: dict[int, Path]) -> None:
    write_atomic(path, content)
    for part in parts.values():
        part.unlink(missing_ok=True)


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _parts(path: Path) -> dict[int, Path]:
    """The parts by where they begin."""
    folder = _folder(path)
    return {int(part.name): part for part in folder.glob("*") if part.name.isdigit()} if folder.exists() else {}
