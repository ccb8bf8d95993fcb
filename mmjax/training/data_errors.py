"""data_errors.jsonl: the values of examples that could not be read, and why."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmjax.data.batching.host_batch import BadValue
from mmjax.files import explained
from mmjax.growing_file import GrowingFile, read_growing, rewrite_growing
from mmjax.sharding.distributed import gather_lines

FORM = {"step": int, "split": str, "index": int, "id": str, "feature": str, "reason": str}


class DataErrorsLog:
    """Collects values that could not be read; the lead process writes them, one JSON object a line.

    `step` is the batch's in training, and the number of steps done in an evaluation. The errors of a held-out split are
    the same every time and written once. A run that resumes at `step` drops the lines of later steps: it will read
    those examples again.
    """

    def __init__(self, run_dir: Path, step: int, *, warn: Callable[[str], None] = print, writer: bool):
        """`warn` gets a line about lines of the file that are not valid; they are dropped."""
        self.path, self._writer = run_dir / "data_errors.jsonl", writer
        self._pending: list[str] = []
        self._held_out: set[tuple[str, int, str]] = set()
        self._values: set[tuple[str, int, str]] = set()
        if writer and (content := read_growing(self.path)):
            lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
            read = [(line, error) for line in lines if (error := _parse(line)) is not None]
            if len(read) < len(lines):
                warn(f"{len(lines) - len(read)} unreadable lines of {self.path} are dropped")
            kept = [line.decode() for line, error in read if _before(error, step)]
            if "".join(kept).encode() != content:
                rewrite_growing(self.path, "".join(kept).encode())
            self._new(kept)

    def add(self, step: int, split: str, errors: tuple[BadValue, ...]) -> None:
        """Adds the errors in the batch of a step."""
        for error in errors:
            self._pending.append(json.dumps({"step": step, "split": split} | dataclasses.asdict(error)))

    @property
    def values(self) -> int:
        """How many different values could not be read."""
        return len(self._values)

    def flush(self) -> None:
        """Writes the errors of all processes. All must call it."""
        lines = gather_lines(self._pending)
        self._pending = []
        self._write(lines)

    def close(self) -> None:
        """Writes this process's errors since the last flush, without waiting for the others."""
        lines, self._pending = self._pending, []
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        # Processes that hold the same rows have the same errors.
        lines = self._new(list(dict.fromkeys(lines)))
        if lines and self._writer:
            with explained(self.path), contextlib.closing(GrowingFile(self.path)) as file:
                file.append("".join(line + "\n" for line in lines).encode())

    def _new(self, lines: list[str]) -> list[str]:
        """The lines of the training split, and of held-out values that were not written before."""
        new = []
        for line in lines:
            error = json.loads(line)
            key = (error["split"], error["index"], error["feature"])
            self._values.add(key)
            if key not in self._held_out:
                new.append(line)
            if error["split"] != "train":
                self._held_out.add(key)
        return new


def _parse(line: bytes) -> dict[str, Any] | None:
    """The error in a line of the file; None if the line is not valid."""
    try:
        error = json.loads(line)
        return error if all(type(error[key]) is kind for key, kind in FORM.items()) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _before(error: dict[str, Any], step: int) -> bool:
    """Whether an error belongs to the first `step` steps, or to an evaluation up to then."""
    return error["step"] < step or (error["split"] != "train" and error["step"] == step)
