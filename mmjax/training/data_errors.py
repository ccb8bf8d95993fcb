"""data_errors.jsonl: what could not be read, and why."""

import dataclasses
import json
from pathlib import Path

from mmjax.data.loader import DataError
from mmjax.files import explained, write_atomic
from mmjax.sharding.distributed import gather_lines


class DataErrorsLog:
    """Collects unusable values and writes them, one JSON object a line, in the lead process.

    A run that resumes at `step` forgets what was written of later steps: it will meet them again.
    """

    def __init__(self, run_dir: Path, step: int, *, writer: bool):
        self._path, self._writer = run_dir / "data_errors.jsonl", writer
        self._pending: list[str] = []
        if writer and self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
            if kept != lines:
                write_atomic(self._path, "".join(kept))

    def add(self, step: int, split: str, errors: tuple[DataError, ...]) -> None:
        """Remembers the errors met in the batch of a step."""
        for error in errors:
            self._pending.append(json.dumps({"step": step, "split": split} | dataclasses.asdict(error)))

    def flush(self) -> None:
        """Writes what all processes have remembered. All must call it."""
        lines = gather_lines(self._pending)
        self._pending = []
        if lines and self._writer:
            with explained(self._path), self._path.open("a") as file:
                file.write("".join(line + "\n" for line in lines))
