"""Files that are either wholly there or not there at all, locks, and what is safe to read."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
# A train state counts its steps in 32 bits.
LARGEST_STEP = 2**31 - 1


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Puts `content` at `path` so that whoever looks, also after a crash, sees the old file or the new one.

    Text is written as UTF-8. Raises UserError where the directory cannot be written or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explained(path):
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def make_folder(folder: Path) -> Iterator[Path]:
    """The folder, which is made where it is not there, and removed again if nothing was put there before an error.

    Raises UserError where it cannot be made.
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


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an operating system's refusal (read-only, disk full, no directory) into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        mend = "free some space or choose another place" if error.errno in FULL else "choose another place"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {mend}") from error


@contextlib.contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock on a file, which is made where it is not there; the lock ends with the process that holds it.

    Raises UserError: `taken`, where another process holds it. A file system without locks gives it to everyone.
    """
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


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises OSError for a link or a special file, of which some never end."""
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raises OSError for what is not a regular file."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def step_of(name: str) -> int | None:
    """The step that a file or folder is named after; None for a name that is not as `str` writes a step."""
    if not (name.isascii() and name.isdigit() and len(name) <= len(str(LARGEST_STEP))):
        return None
    step = int(name)
    return step if str(step) == name and step <= LARGEST_STEP else None
