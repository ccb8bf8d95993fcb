"""Reading files, and members of zip and tar archives, that may hold anything; nothing is ever unpacked.

What is wrong with them is an OSError with one line, whatever the decompressor raised.
"""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LARGEST = 2**29  # bytes that a file may have, or that what is read of an archive may inflate to
_OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


def check_regular(path: Path) -> int:
    """How many bytes a file has. OSError for a folder, and for a pipe or a device, which might never end."""
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(about.st_mode):
        raise OSError("it is not a regular file")
    return about.st_size


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a regular file."""
    if check_regular(path) > largest:
        raise OSError(f"it has more than {largest} bytes")
    return path.read_bytes()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns every error of a decompressor into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # zlib.error, LZMAError, BadZipFile, RuntimeError, KeyError: each format has its own
        raise OSError(" ".join(f"{type(error).__name__}: {error}".split())) from error


class _Bounded(io.RawIOBase):
    """A stream of which no more than `LARGEST` bytes are read."""

    def __init__(self, stream: Any):
        self._stream, self._left = stream, LARGEST

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise OSError(f"it inflates to more than {LARGEST} bytes")
        return content


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Bounded]:
    """The content of a gzip, xz or bzip2 file, or of one that is not compressed, as a stream."""
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    with path.open("rb") if opener is None else opener(path) as stream:
        yield _Bounded(stream)


def inflate(path: Path) -> bytes:
    """The content of a gzip, xz or bzip2 file, or of one that is not compressed."""
    with _explained(), _opened(path) as stream:
        return stream.read()


def tar_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files in a tar archive, in order; links, which may lead nowhere, are left out."""
    with _explained(), _opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isreg() and not member.issparse():  # of a sparse file the archive holds next to nothing
                file = archive.extractfile(member)
                assert file is not None
                yield member.name, file.read()


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """The names in a zip archive, and a function that reads one of them."""
    left = LARGEST

    def read(name: str) -> bytes:
        nonlocal left
        with _explained(), archive.open(name) as file:
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise OSError(f"it inflates to more than {LARGEST} bytes")
        return content

    with _explained():
        check_regular(path)
        archive = zipfile.ZipFile(path)
    with archive:
        yield set(archive.namelist()), read
