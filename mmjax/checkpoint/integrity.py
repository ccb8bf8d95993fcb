"""Checksums of a checkpoint's files, step and run, and the meaning of errors of the disk.

Orbax notices missing and truncated files of arrays, but restores flipped bytes of array data (its chunks have no
checksum) and flipped letters of JSON without a word.
"""

import concurrent.futures
import errno
import hashlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mmjax.buckets import service_error
from mmjax.files import check_regular_file, read_json, to_path

EXPERIMENT_FILE = "experiment.json"
# Bytes of the largest experiment.json that is read.
LARGEST_EXPERIMENT = 2**26
SEAL = "digests.json"
# Orbax writes these after the folder is sealed: the time of the commit and, in some places, that there was one. Nothing
# of ours reads them.
COMMITTED = "commit_success.txt"
UNSEALED = ("_CHECKPOINT_METADATA", COMMITTED)

BUCKET_PROBLEM = r"Error (?:reading|writing) gs://[^\s:]+: [^\[]+|Invalid GCS bucket name: [^\s\[]+"
# What coroutines that were never awaited raise when Python ends.
AT_EXIT = "sys.meta_path is None, Python is likely shutting down"

DISK_PROBLEMS = {
    errno.ENOSPC: "the disk is full; make room there",
    errno.EDQUOT: "the disk quota is used up; make room there",
    errno.EFBIG: "a file would be larger than allowed there; raise the limit",
    errno.EROFS: "that file system is read-only; set run_dir to another place",
    errno.EACCES: "writing there is not permitted; set run_dir to another place",
    errno.EPERM: "writing there is not permitted; set run_dir to another place",
}


def stored_fingerprints(run_dir: str | Path) -> list[str]:
    """The fingerprints in a run directory's `experiment.json`.

    The run's own comes first, then those that it had before it was extended. Empty where there is no such file. The
    classes that it names need not be known.
    """
    try:
        found = read_json(to_path(run_dir) / EXPERIMENT_FILE, LARGEST_EXPERIMENT)
        return [str(found["fingerprint"]), *map(str, found["earlier"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_checksums(folder: Path, step: int, fingerprint: str | None) -> None:
    """Writes `digests.json` into a folder: its step, its run, and the size and SHA-256 of every file."""
    names = _names(folder)
    files = dict(zip(names, _digests(folder, names), strict=True))
    (folder / SEAL).write_text(json.dumps({"step": step, "fingerprint": fingerprint, "files": files}, indent=1))


def find_damage(
    folder: Path, step: int, fingerprints: Collection[str] = (), *, part: int = 0, parts: int = 1
) -> str | None:
    """How a checkpoint's folder differs from what was written; None if it does not.

    It must be that of the step, and of a run with one of the `fingerprints` where some are given.

    Only every `parts`-th file is read, from the `part`-th on, so that processes can share the work. Nothing is read
    that lies outside the folder.
    """
    try:
        found = _names(folder)
        sealed = read_json(folder / SEAL)
        if sealed and all(isinstance(entry, list) for entry in sealed.values()):
            return "it was written by an older version of mmjax"
        wanted = sealed["files"]
        if type(sealed["step"]) is not int:
            raise TypeError("a step is a number")
        if sealed["step"] != step:
            return f"it is the checkpoint of step {sealed['step']}"
        if fingerprints and sealed["fingerprint"] not in fingerprints:
            return "it is of another run"
        for name in sorted(wanted.keys() - set(found)):
            return f"{name} is missing"
        for name in sorted(set(found) - wanted.keys()):
            return f"{name} was added"
        names = found[part::parts]
        digests = _digests(folder, names)
        return next(
            (f"{name} was changed" for name, got in zip(names, digests, strict=True) if got != wanted[name]), None
        )
    except OSError as error:
        name = os.path.relpath(error.filename, folder) if error.filename else "a file"
        return (
            f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read: {error.strerror}"
        )
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{SEAL} was changed"


def _names(folder: Path) -> list[str]:
    """The files that the checksums cover. Raises OSError where something is neither a folder nor a regular file."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    for path in paths:
        check_regular_file(path)
    return sorted({str(path.relative_to(folder)) for path in paths} - {SEAL, *UNSEALED})


def _digests(folder: Path, names: list[str]) -> list[list[Any]]:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> list[Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def disk_problem(error: BaseException | None) -> str | None:
    """The problem of the disk or the bucket in words, or None; of TensorStore's errors the text tells it."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
            number = int(found[1])
        if number in DISK_PROBLEMS:
            return DISK_PROBLEMS[number]
        if found := re.search(BUCKET_PROBLEM, str(error)):
            return " ".join(found[0].split())
        if (reason := service_error(error)) is not None:
            return reason
        error = error.__cause__ or error.__context__
    return None


def silence_write_errors() -> None:
    """Keeps tracebacks of failed writes off standard error: of the many at once Orbax raises one.

    The others reach nobody: futures that nobody asks, answers to an event loop that has closed since, writes that were
    never begun. Every other such message is let through.
    """
    logging.getLogger("asyncio").addFilter(_is_not_refusal)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize_from_host", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable(sys.unraisablehook)


def _is_not_refusal(record: logging.LogRecord) -> bool:
    return record.exc_info is None or disk_problem(record.exc_info[1]) is None


class _Unraisable:
    """Passes on what could not be raised, except that an event loop was closed or Python ends."""

    def __init__(self, following: Callable[[Any], Any]):
        self._following = following

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) not in ("Event loop is closed", AT_EXIT):
            self._following(unraisable)
