"""A run in figures: metrics.jsonl, TensorBoard curves, summary.json, the digest of its parameters."""

import errno
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.files import explained, local_path, read_json, read_regular, write_atomic
from mmjax.layers.tree import named_leaves

# TensorBoard's file is flushed to the disk this often; metrics.jsonl after every line.
TENSORBOARD_FLUSH_SECONDS = 10.0


class MetricsLog:
    """Appends logged steps to `run_dir`/metrics.jsonl and to TensorBoard event files in `run_dir`/tensorboard.

    A line is `{"step": k, "seconds": since the run began, "split/output/metric": value, ...}`. JSON knows no NaN and no
    infinity: such a value is written as null there (TensorBoard gets it as it is), and `history` reads null as NaN.

    A run that resumes at `step` opens the log with it: what the session before wrote of later steps, and a last line
    that was torn by its death, go away, so that the file holds every step once; `seconds` goes on from the last line
    kept.
    A process that is not the `writer` (every one but the lead) touches no file and may call everything.
    """

    def __init__(self, run_dir: str | os.PathLike[str], step: int = 0, *, writer: bool = True):
        self.path = local_path(run_dir) / "metrics.jsonl"
        self._writer = writer
        self._began = time.monotonic()
        self._last: dict[str, Any] = {"step": -1}
        if not writer:
            return
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._cut(step)
            self._file = self.path.open("ab", buffering=0)
            self._events = _EventFile(self.path.parent / "tensorboard", step)
        if lines:
            self._last = json.loads(lines[-1])
            self._began -= self._last["seconds"]
        self._start_of_last = self._file.tell() - (len(lines[-1]) if lines else 0)

    def _cut(self, step: int) -> list[bytes]:
        """The lines up to `step`, which are then all that the file holds."""
        if not self.path.exists():
            return []
        content = read_regular(self.path)
        kept = [line for line, values in _parsed(content, self.path) if values["step"] <= step]
        if b"".join(kept) != content:
            write_atomic(self.path, b"".join(kept))
        return kept

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, earlier sessions included (but not what was cut from them)."""
        return time.monotonic() - self._began

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Logs the metrics of a step, in their order. The same step again adds to its line, newer values taking over.

        Raises ValueError for a step before the last one logged, UserError if the disk is full.
        """
        if not self._writer:
            return
        last = self._last["step"]
        if step < last:
            raise ValueError(f"step {step} cannot be logged after step {last}")
        values = {name: float(value) for name, value in metrics.items()}
        line = {**(self._last if step == last else {}), "step": int(step), "seconds": round(self.seconds, 3)}
        line |= {name: _json(value) for name, value in values.items()}
        encoded = json.dumps(line, allow_nan=False).encode() + b"\n"
        with explained(self.path):
            if step == last:
                os.truncate(self.path, self._start_of_last)
            else:
                self._start_of_last = self.path.stat().st_size
            # One unbuffered write: a process killed at any moment loses this line at most.
            if self._file.write(encoded) != len(encoded):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._events.write(step, values)
        self._last = line

    def history(self) -> list[dict[str, float | int]]:
        """All logged steps, oldest first, null read as NaN."""
        return read_history(self.path.parent)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer:
            with explained(self.path):
                self._file.close()
                self._events.close()


class _EventFile:
    """TensorBoard scalars, written by the calling thread.

    tensorboardX's SummaryWriter writes from a thread of its own, and waits for ever once that thread met a full disk;
    its event writer underneath says so at once.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(exist_ok=True)
        resumed = any(directory.iterdir())
        # A resumed session of the same second on the same host would otherwise write over the one before.
        self._writer = EventsWriter(str(directory / "events"), filename_suffix=f".{os.getpid()}.{time.time_ns()}")
        if resumed:  # tells TensorBoard to forget what earlier files hold after this step
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, wall_time=time.time(), session_log=start))
        self._writer.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(step=int(step), wall_time=time.time(), summary=Summary(value=scalars)))
        if time.monotonic() - self._flushed > TENSORBOARD_FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def read_history(run_dir: str | os.PathLike[str]) -> list[dict[str, float | int]]:
    """The logged steps of a run directory, oldest first, null read as NaN; empty where nothing was logged."""
    path = local_path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    with explained(path):
        parsed = _parsed(read_regular(path), path)
    return [{name: math.nan if value is None else value for name, value in values.items()} for _, values in parsed]


def _parsed(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a metrics file with what they say. A torn last line is left out; any other is the user's."""
    parsed = []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            values = json.loads(line)
            if not isinstance(values["step"], int) or not math.isfinite(values["seconds"]):
                raise ValueError("no step, or no seconds")
            _check_numbers(values)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is not a logged step; fix it or move the file away") from error
        parsed.append((line, values))
    return parsed


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raises TypeError or OverflowError where something is neither a number nor null."""
    for value in values.values():
        if value is not None:
            math.isfinite(value)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_summary(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The outcome of a run, as `write_summary` wrote it. Raises UserError where it is not there or damaged."""
    path = local_path(run_dir) / "summary.json"
    try:
        summary = read_json(path)
        math.isfinite(summary["step"] + summary["seconds"])
        _check_numbers(summary["metrics"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is missing or damaged; remove it, and the same command writes it again") from error
    return summary


def write_summary(
    run_dir: str | os.PathLike[str],
    *,
    fingerprint: str,
    step: int,
    seconds: float | int,
    metrics: Mapping[str, SupportsFloat],
    parameters_digest: str,
    examples_digest: str,
) -> Path:
    """Writes summary.json, the outcome of a run, all at once; non-finite metrics as null. Returns its path."""
    summary = {
        "fingerprint": fingerprint,
        "step": int(step),
        "seconds": float(seconds),
        "metrics": {name: _json(float(value)) for name, value in metrics.items()},
        "parameters_digest": parameters_digest,
        "examples_digest": examples_digest,
    }
    return write_atomic(local_path(run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def parameters_digest(tree: Any) -> str:
    """SHA-256 over the leaves of `tree` in the order of their names: name, dtype, shape, and the values, row by row, in
    little endian. It depends neither on the mesh nor on the number of processes.

    Every process of the run must call it: a leaf that lies on several is gathered, one leaf at a time.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree), key=lambda named: named[0]):
        array = np.ascontiguousarray(_whole(leaf))
        # ascontiguousarray makes a scalar a vector; the name is that of the leaf's own shape.
        digest.update(f"{name} {array.dtype.name} {list(np.shape(leaf))}\n".encode())
        if sys.byteorder == "big":
            array = array.byteswap()
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _whole(leaf: Any) -> np.ndarray:
    """The values of a leaf, gathered from all processes if this one cannot see all of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
