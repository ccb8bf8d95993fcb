"""Safe reading of files and of members of zip and tar archives, without unpacking them.

Every problem is an OSError with one line, whatever the decompressor raised.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmjax.files import open_regular

LARGEST = 2**29  # bytes that what is read of an archive may inflate to
_OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}


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
    """A stream that reads at most `LARGEST` bytes."""

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
    """The content of a gzip, xz, bzip2 or uncompressed file, as a stream."""
    with open_regular(path) as file:
        start = file.read(8)
        file.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), contextlib.nullcontext)
        with opener(file) as stream:
            yield _Bounded(stream)


def read_compressed(path: Path) -> bytes:
    """The content of a gzip, xz, bzip2 or uncompressed file."""
    with _explained(), _opened(path) as stream:
        return stream.read()


def tar_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files in a tar archive, in order; links are skipped."""
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
        with _explained(), archive.open(name) as member:
            content = member.read(left + 1)
        left -= len(content)
        if left < 0:
            raise OSError(f"it inflates to more than {LARGEST} bytes")
        return content

    with open_regular(path) as file:
        with _explained():
            archive = zipfile.ZipFile(file)
        with archive:
            yield set(archive.namelist()), read
