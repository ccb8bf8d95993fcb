"""A data_dir in a bucket: a local mirror of it, downloaded and uploaded folder by folder."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmjax.buckets import download_files, is_remote
from mmjax.files import explained, local_path, to_path, write_atomic

WHOLE = ".files.json"
"""The files of an uploaded folder, by name below it; written when all of them are there."""


def data_root(data_dir: str) -> Path:
    """The local folder of a data_dir: itself, or the mirror of one in a bucket."""
    if not is_remote(data_dir):
        return local_path(data_dir)
    scheme, _, rest = str(to_path(data_dir)).partition("://")
    return _mirrors() / scheme / rest


def make_once(folder: Path, last: str, build: Callable[[Path], None]) -> None:
    """Builds a folder, or downloads it where a bucket has it: whole or not at all.

    Args:
        last: a file that it holds.
        build: writes the files into a folder.
    """
    download(folder)
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
    upload(folder)


def download(folder: Path) -> None:
    """Downloads a folder of a mirror where only the bucket has it."""
    origin = _origin(folder)
    if origin is None or folder.exists():
        return
    try:
        names = json.loads((origin / WHOLE).read_bytes())
    except FileNotFoundError:
        return
    with explained(folder):
        download_files(origin, names, folder)


def upload(folder: Path) -> None:
    """Uploads a folder of a mirror, if it is one, so that other machines need not build it."""
    origin = _origin(folder)
    if origin is None:
        return
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with explained(origin):
        for name in names:
            origin.fs.put_file(str(folder / name), (origin / name).path)
        write_atomic(origin / WHOLE, json.dumps(names))


def _mirrors() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmjax" / "mirrors"


def _origin(folder: Path) -> Any | None:
    """The folder in a bucket that a local one mirrors; None for any other."""
    if not folder.is_relative_to(_mirrors()):
        return None
    scheme, *rest = folder.relative_to(_mirrors()).parts
    return to_path(f"{scheme}://{'/'.join(rest)}")
