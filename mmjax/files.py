"""Files that are either wholly there or not there at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mmjax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


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
