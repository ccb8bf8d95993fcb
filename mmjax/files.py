"""Paths as users type them, atomic reading and writing of files, and locks."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmjax import buckets
from mmjax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
# A train state counts its steps in 32 bits.
LARGEST_STEP = 2**31 - 1

# Default limit of a file that is read whole, bytes.
LARGEST = 2**30


def to_path(text: str | Path) -> Path:
    """The path that a user typed, local or in a bucket; UserError as of `local_path`."""
    if not buckets.is_remote(text):
        return local_path(text)
    return buckets.remote_path(text) if isinstance(text, str) else cast(Path, text)


def local_path(text: str | Path) -> Path:
    """The local path that a user typed, with ~ expanded.

    Raises UserError for the home of an unknown user, and for a path that is invalid, not accessible, or in a bucket.
    """
    if buckets.is_remote(text):
        raise UserError(f"{str(text).partition('://')[0]}:// is not possible here: give a local path")
    typed = os.fspath(text)
    try:
        typed.encode()  # What is not UTF-8 came as lone surrogates.
        path = Path(typed).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except RuntimeError as error:
        raise UserError(f"{typed}: there is no such user's home directory; write the path in full") from error
    except (OSError, ValueError) as error:
        reason = "it holds a NUL byte or bytes that are not UTF-8" if isinstance(error, ValueError) else error.strerror
        shown = typed if len(typed) <= 80 else typed[:77] + "..."
        raise UserError(f"{shown!r} cannot be a path here: {reason}") from error
    return path


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes.

    Raises OSError where there is none: also for a pipe or a device, which could be read for ever.
    """
    # With O_NONBLOCK, opening a pipe does not wait for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        yield file


def read_regular(path: str | Path, limit: int = LARGEST) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises OSError as `open_regular` does, and for a larger file.
    """
    if buckets.is_remote(path):
        content = buckets.read_range(to_path(path), 0, limit + 1)
    else:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return content


def read_json(path: str | Path, limit: int = LARGEST) -> Any:
    """The content of a JSON file.

    Raises OSError as `read_regular` does, and ValueError for invalid JSON.
    """
    try:
        return json.loads(read_regular(path, limit))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_atomic(path: str | Path, content: str | bytes, mode: int | None = None) -> Path:
    """Writes `content` to `path` so that a reader, also after a crash, sees the old file or the new one.

    Text is written as UTF-8. Raises UserError where the directory cannot be written, the disk is full, or the path is
    not a regular file.

    Args:
        mode: the new file's permissions, such as 0o755; None: by the process's umask.
    """
    if buckets.is_remote(path):
        with explained(path):
            to_path(path).write_bytes(content.encode() if isinstance(content, str) else content)
        return to_path(path)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explained(path):
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "the existing path is not a regular file")
        try:
            with partial.open("wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def make_folder(folder: Path) -> Iterator[Path]:
    """Creates the folder if needed; removes it again if an error occurs while it is still empty.

    Raises UserError where it cannot be created.
    """
    new = not folder.exists()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def free_path(path: Path) -> Path:
    """The first of PATH.1, PATH.2, ... that is not there."""
    return next(free for number in itertools.count(1) if not (free := path.with_name(f"{path.name}.{number}")).exists())


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turns an OSError, or the refusal of a service, into a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        fix = "free some space or choose another place" if error.errno in FULL else "choose another place"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {fix}") from error
    except Exception as error:  # each service's package has its own
        reason = buckets.service_error(error)
        if reason is None:
            raise
        raise UserError(f"cannot write {path}: {reason}") from error


@contextlib.contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock on a file, created if needed; the lock ends with the process.

    Raises UserError: `taken`, where another process holds it. On a file system without locks it always succeeds.
    """
    if buckets.is_remote(path):
        with buckets.leased(path, taken):
            yield
        return
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(taken) from error
        except OSError:  # not every file system has locks
            pass
        yield


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Holds the lock on a file when no other process holds it any more; the lock ends with the process."""
    with contextlib.ExitStack() as stack:
        if buckets.is_remote(path):
            while True:
                try:
                    stack.enter_context(buckets.leased(path, "held"))
                    break
                except UserError:
                    time.sleep(1)
        else:
            file = stack.enter_context(open(path, "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_regular_file(path: Path) -> None:
    """Raises OSError for anything but a regular file, also for a link to one."""
    if not buckets.is_remote(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def step_of(name: str) -> int | None:
    """The step that a file or folder is named after; None for other names."""
    if not (name.isascii() and name.isdigit() and len(name) <= len(str(LARGEST_STEP))):
        return None
    step = int(name)
    return step if str(step) == name and step <= LARGEST_STEP else None
