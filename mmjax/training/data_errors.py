"""data_errors.jsonl: what could not be read, and why."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mmjax.data.loader import DataError
from mmjax.files import explained, write_atomic
from mmjax.sharding.distributed import gather_lines


class DataErrorsLog:
    """Collects unusable values and writes them, one JSON object a line, in the lead process.

    `step` is the batch's in training and the number of steps done where a held-out split was read, whose errors are the
    same every time and written once. A run that resumes at `step` forgets what was written of later steps: it will meet
    them again.
    """

    def __init__(self, run_dir: Path, step: int, *, writer: bool):
        self._path, self._writer = run_dir / "data_errors.jsonl", writer
        self._pending: list[str] = []
        self._held_out: set[tuple[str, int, str]] = set()
        if writer and self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _before(json.loads(line), step)]
            if kept != lines:
                write_atomic(self._path, "".join(kept))
            self._new(kept)

    def add(self, step: int, split: str, errors: tuple[DataError, ...]) -> None:
        """Remembers the errors met in the batch of a step."""
        for error in errors:
            self._pending.append(json.dumps({"step": step, "split": split} | dataclasses.asdict(error)))

    def flush(self) -> None:
        """Writes what all processes have remembered. All must call it."""
        lines = gather_lines(self._pending)
        self._pending = []
        self._write(lines)

    def close(self) -> None:
        """Writes what this process has remembered since; for a run that was cut short, where others may not come."""
        lines, self._pending = self._pending, []
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        # Processes that hold the same rows have met the same errors.
        lines = self._new(list(dict.fromkeys(lines)))
        if lines and self._writer:
            with explained(self._path), self._path.open("a") as file:
                file.write("".join(line + "\n" for line in lines))

    def _new(self, lines: list[str]) -> list[str]:
        """Those of the lines that are of training, or of a held-out value for the first time."""
        new = []
        for line in lines:
            error = json.loads(line)
            key = (error["split"], error["index"], error["feature"])
            if key not in self._held_out:
                new.append(line)
            if error["split"] != "train":
                self._held_out.add(key)
        return new


def _before(error: dict[str, Any], step: int) -> bool:
    """Whether an error was met on the way to `step`: by a batch before it, or by an evaluation after so many steps."""
    return error["step"] < step or (error["split"] != "train" and error["step"] == step)
