"""Paths in buckets and in memory, with pathlib's interface: universal_pathlib over fsspec.

An object can neither be appended to nor renamed at once, and no lock ends with its holder: so a file that grows is kept
in parts (`mmjax.growing_file`), and a lock is an object that only one process can create and that it renews.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import io
import json
import os
import posixpath
import re
import shutil
import socket
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mmjax.errors import UserError

# The packages that fsspec needs, and their extras.
PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3"), "memory": ("fsspec", "")}
# Whose errors are those of a network or of a service.
SERVICES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}

TRIES = 4  # of a read whose network stalls or fails; each has fsspec's own retries within its time
STALL_SECONDS = 30.0  # a read takes less
LEASE_SECONDS = 60.0  # a lock that was not renewed for so long is free


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL such as gs://bucket/folder."""
    return "://" in str(path)


def remote_path(url: str) -> Path:
    """The path of a URL such as gs://bucket/folder, with pathlib's methods.

    Raises UserError for an unknown scheme and for missing packages. Credentials come from the environment, as gcsfs and
    s3fs document, and are never part of a path.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise UserError(f"{scheme}:// is not supported; use a local path or one of {known}")
    if "@" in rest.partition("/")[0] or re.search(r"[?&]\w+=", rest):
        # The URL is not shown: it may hold a secret.
        raise UserError(
            f"a {scheme}:// path holds credentials or options: leave them out, and set them in the environment"
        )
    if ".." in rest.split("/"):
        raise UserError(f"{url}: a path in a bucket has no ..; write it in full")
    package, extra = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{url} needs the package {package}: pip install 'mmjax[{extra}]'")
    from upath import UPath

    # Another process may write there at any time.
    options: dict[str, Any] = {} if scheme == "memory" else {"use_listings_cache": False}
    return cast(Path, UPath(url.rstrip("/"), **options))


def service_error(error: BaseException | None) -> str | None:
    """What a network or a service refused, in a line; None for any other error."""
    while error is not None:
        # Some raise Python's own errors, as OSError for what is forbidden.
        frames = [*traceback.walk_tb(error.__traceback__)]
        modules = [type(error).__module__, *(frame.f_globals.get("__name__", "") for frame, _ in frames[-1:])]
        if {name.partition(".")[0] for name in modules} & SERVICES or type(error).__name__ == "FSTimeoutError":
            kind = "no such bucket or object" if isinstance(error, FileNotFoundError) else type(error).__name__
            return " ".join(f"{kind}: {error}".split())[:300]
        error = error.__cause__ or error.__context__
    return None


class _Retries(threading.local):
    """Reads of this thread that were tried again, of which training logs the number."""

    count = 0


RETRIES = _Retries()


def read_range(path: Any, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes from `start` to `stop` of a remote file, in one request.

    A read that stalls or that the service refuses is tried again, three times.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        UserError: the service does not answer.
    """
    from fsspec.asyn import AsyncFileSystem, sync

    fs = path.fs
    for attempt in range(TRIES):
        try:
            if isinstance(fs, AsyncFileSystem):
                return sync(fs.loop, fs._cat_file, path.path, start=start, end=stop, timeout=STALL_SECONDS)
            return fs.cat_file(path.path, start=start, end=stop)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each package has its own
            reason = service_error(error) or (str(error) if isinstance(error, OSError) else None)
            if reason is None:
                raise
            if "range is not satisfiable" in reason or ", 416" in reason:
                return b""  # the object ends before
            if "Forbidden" in reason:
                raise PermissionError(f"{path} may not be read ({reason})") from error
            if attempt == TRIES - 1:
                raise UserError(f"{path} could not be read in {TRIES} tries ({reason}); try again later") from error
            RETRIES.count += 1
            time.sleep(2.0**attempt)
    raise AssertionError("not reached")


def open_bytes(path: Path) -> BinaryIO:
    """A file, open for reading; an object in a bucket is fetched in parts, as it is read."""
    # fsspec's files read lines of any length only.
    return cast(BinaryIO, io.BufferedReader(cast(Any, path).open("rb"), 2**20)) if is_remote(path) else path.open("rb")


def nothing_there(path: Path) -> str:
    """The reason why nothing is found at a path: a service that refuses access looks like a missing file."""
    if not is_remote(path):
        return "there is no such file or folder"
    try:
        cast(Any, path).fs.info(cast(Any, path).path)
    except FileNotFoundError:
        return "there is no such file or folder"
    except Exception as error:  # each package has its own
        return f"it cannot be read ({service_error(error) or error}); check the credentials and their permissions"
    return "it is neither a file nor a folder"


def find_files(folder: Any) -> dict[str, tuple[int, int]]:
    """Bytes and a number for the version of every file below a remote folder, by path; one listing."""
    found = folder.fs.find(folder.path, detail=True)
    start = folder.path.strip("/") + "/"
    return {
        name.strip("/").removeprefix(start): version_of(info)
        for name, info in sorted(found.items())
        if info["type"] == "file" and not name.endswith("/")
    }


def version_of(info: dict[str, Any]) -> tuple[int, int]:
    """Bytes and a number for the version of an object that fsspec describes."""
    by = next((str(info[name]) for name in ("generation", "ETag", "etag", "created") if info.get(name)), "")
    return int(info["size"]), int(hashlib.sha256(by.encode()).hexdigest()[:15], 16)


def below(root: Any, name: str) -> Any | None:
    """The path of a name below a remote folder; None where it leads out of it."""
    if is_remote(name):
        start = f"{root}/"
        name = name.removeprefix(start) if name.startswith(start) else "/"
    if name.startswith("/") or posixpath.normpath(name).split("/")[0] in ("..", "."):
        return None
    return root / posixpath.normpath(name)


def move(source: Path, target: Path) -> None:
    """Renames a folder; in a bucket, copies and then removes it."""
    if is_remote(source):
        copy_tree(source, target)
        remove_tree(source)
    else:
        source.rename(target)


def copy_tree(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """Copies a folder, except what has names that match the patterns `without`."""
    if not is_remote(source):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))
        return
    for name in find_files(source):
        if not any(fnmatch.fnmatch(part, pattern) for part in name.split("/") for pattern in without):
            cast(Any, source).fs.cp_file((cast(Any, source) / name).path, (cast(Any, target) / name).path)


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is below it, if it is there."""
    if is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            cast(Any, folder).fs.rm(cast(Any, folder).path, recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


class UploadedFolder:
    """A folder for what writes local files: itself, or a local one that is uploaded to it."""

    def __init__(self, target: Path):
        self._target = target
        self._scratch = tempfile.TemporaryDirectory() if is_remote(target) else None
        self.path = target if self._scratch is None else Path(self._scratch.name)
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self) -> None:
        """Writes all files to their place; a local folder is there already."""
        for file in self.path.rglob("*") if self._scratch is not None else ():
            if file.is_file():
                (self._target / file.relative_to(self.path).as_posix()).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Uploads, and removes what is local for this only."""
        self.upload()
        if self._scratch is not None:
            self._scratch.cleanup()


def local_copy(folder: Path, cache: Path) -> Path:
    """A local copy of a remote folder, downloaded once for each version; a local one is itself."""
    if not is_remote(folder):
        return folder
    remote: Any = folder
    files = find_files(remote)
    if not files:
        raise UserError(f"{folder} holds no files")
    name = hashlib.sha256(json.dumps([str(folder), sorted(files.items())]).encode()).hexdigest()[:16]
    copy = cache / f"{folder.name}-{name}"
    if not copy.is_dir():
        download_files(remote, files, copy)
    return copy


def download_files(source: Any, names: Iterable[str], folder: Path) -> None:
    """Downloads files of a remote folder into a new local one, all of them or none.

    Raises UserError for a name that leads out of the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for name in names:
            if not (partial / name).resolve().is_relative_to(partial.resolve()):
                raise UserError(f"{source} names {name}, which leads out of its folder; remove that file")
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            source.fs.get_file((source / name).path, str(partial / name))
        with contextlib.suppress(OSError):  # another process was first
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def leased(path: Any, taken: str, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Holds a lock that is an object: created by one process, renewed while it is held, and then removed.

    A process that was killed leaves it: on its own host it is known to be gone, elsewhere the lock is free when it was
    not renewed for `seconds`.

    Raises UserError: `taken`, where another process holds it.
    """
    holder = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex}

    def write(mode: str) -> None:
        content = json.dumps(holder | {"until": time.time() + seconds}).encode()
        path.fs.pipe_file(path.path, content, mode=mode)

    _remove_if_free(path, taken)
    try:
        write("create")
    except FileExistsError as error:
        raise UserError(taken) from error
    if (_holder(path) or {}).get("token") != holder["token"]:
        raise UserError(taken)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(ended, seconds / 4, lambda: write("overwrite")), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        if (_holder(path) or {}).get("token") == holder["token"]:
            path.unlink(missing_ok=True)


def _renew(ended: threading.Event, every: float, write: Callable[[], None]) -> None:
    while not ended.wait(every):
        with contextlib.suppress(Exception):  # a network that is away; the next time may be in time
            write()


def _holder(path: Any) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_bytes())
        return held if isinstance(held, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _remove_if_free(path: Any, taken: str) -> None:
    """Removes the lock of a process that is gone. Raises UserError where it may be held."""
    held = _holder(path)
    if held is None:
        return
    here = held.get("host") == socket.gethostname()
    if here and not _runs(held.get("process", 0)):
        path.unlink(missing_ok=True)
    elif (left := float(held.get("until", 0)) - time.time()) > 0:
        where = f"its lock {path} is held by {held.get('host')}, process {held.get('process')}"
        raise UserError(f"{taken} ({where}; if that was killed, the lock is free in {left:.0f} s)")
    else:
        path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, TypeError):
        pass
    return True
