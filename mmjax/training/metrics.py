"""The metrics of a run: metrics.jsonl and other writers, summary.json, the digest of its parameters."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.files import explained, read_json, to_path, write_atomic
from mmjax.growing_file import GrowingFile, read_growing, rewrite_growing
from mmjax.layers.tree import named_leaves
from mmjax.writers import Writer


class MetricsLog:
    """Appends logged steps to `run_dir`/metrics.jsonl, and passes them on to other writers.

    A line is `{"step": k, "seconds": since the run began, "split/output/metric": value, ...}`. JSON has no NaN and no
    infinity: such a value is written as null there (other writers get it unchanged), and `history` reads null as NaN.

    A run that resumes at `step` opens the log with it: later steps of the session before, and a last line that is
    incomplete because the process was killed, are removed, so that the file holds every step once; `seconds` goes on
    from the last line kept. The `writers` are closed with the log.
    A process that is not the lead touches no file and may call everything.
    """

    def __init__(self, run_dir: str | Path, step: int = 0, *, writers: Sequence[Writer] = (), lead: bool = True):
        self.path = to_path(run_dir) / "metrics.jsonl"
        self._writers, self._lead = writers, lead
        self._began = time.monotonic()
        self._last: dict[str, Any] = {"step": -1}
        if not lead:
            return
        with explained(self.path):
            lines = self._cut(step)
        if lines:
            self._last = json.loads(lines[-1])
            self._began -= self._last["seconds"]
        self._file = GrowingFile(self.path, len(lines[-1]) if lines else 0)

    def _cut(self, step: int) -> list[bytes]:
        """Cuts the file after `step`; returns the lines that are left."""
        content = read_growing(self.path)
        kept = [line for line, values in _parsed(content, self.path) if values["step"] <= step]
        if b"".join(kept) != content:
            rewrite_growing(self.path, b"".join(kept))
        return kept

    @property
    def seconds(self) -> float:
        """The seconds the run has taken, with those of earlier sessions whose steps were kept."""
        return time.monotonic() - self._began

    def write(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Logs the metrics of a step, in order. The same step again adds to its line; newer values win.

        Raises ValueError for a step before the last one logged, UserError if the disk is full.
        """
        if not self._lead:
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
                self._file.replace_last(encoded)
            else:
                self._file.append(encoded)
            for writer in self._writers:
                writer.write(step, values)
        self._last = line

    def history(self) -> list[dict[str, float | int]]:
        """All logged steps, oldest first, null read as NaN."""
        return read_history(self.path.parent)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._lead:
            with explained(self.path):
                self._file.close()
                for writer in self._writers:
                    writer.close()


def read_history(run_dir: str | Path) -> list[dict[str, float | int]]:
    """The logged steps of a run directory, oldest first, null read as NaN; empty without a log."""
    path = to_path(run_dir) / "metrics.jsonl"
    with explained(path):
        parsed = _parsed(read_growing(path), path)
    return [{name: math.nan if value is None else value for name, value in values.items()} for _, values in parsed]


def _parsed(content: bytes, path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a metrics file with their values, without an incomplete last one."""
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


def read_summary(run_dir: str | Path) -> dict[str, Any]:
    """The content of summary.json. Raises UserError where the file is missing or damaged."""
    path = to_path(run_dir) / "summary.json"
    try:
        summary = read_json(path)
        math.isfinite(summary["step"] + summary["seconds"])
        _check_numbers(summary["metrics"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is missing or damaged; remove it, and the same command writes it again") from error
    return summary


def write_summary(
    run_dir: str | Path,
    *,
    fingerprint: str,
    step: int,
    seconds: float | int,
    metrics: Mapping[str, SupportsFloat],
    parameters_digest: str,
    examples_digest: str,
) -> Path:
    """Writes summary.json atomically, non-finite metrics as null. Returns its path."""
    summary = {
        "fingerprint": fingerprint,
        "step": int(step),
        "seconds": float(seconds),
        "metrics": {name: _json(float(value)) for name, value in metrics.items()},
        "parameters_digest": parameters_digest,
        "examples_digest": examples_digest,
    }
    return write_atomic(to_path(run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def parameters_digest(tree: Any) -> str:
    """SHA-256 over the leaves of a tree, which depends neither on the mesh nor on the number of processes.

    Leaves are taken in the order of their names: name, dtype, shape, and the values, row by row, in little endian.

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
