"""experiment.json: an experiment as JSON, its fingerprint, and whose a run directory is."""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from mmjax import files
from mmjax.checkpoint.integrity import EXPERIMENT_FILE as FILE
from mmjax.checkpoint.integrity import LARGEST_EXPERIMENT
from mmjax.checkpoint.manager import FOLDER
from mmjax.config import modules, tree
from mmjax.config.experiment import Experiment
from mmjax.errors import UserError

FORMAT = 2
MODULES = "modules.json"
"""Beside it: the files that the run's own classes came from, where it has some (see `modules.digests`)."""


def to_json(experiment: Experiment) -> str:
    """The resolved tree as JSON: every value, and the class of every node by its dotted name inside mmjax."""
    return json.dumps(_draft(experiment).data(), indent=2, allow_nan=False)


def from_json(source: str, file: str = "the experiment's JSON") -> Experiment:
    """The experiment that `to_json` wrote. Raises UserError, naming `file` and the key, for anything else."""
    return _make(_parse(source, file), file)


def fingerprint(experiment: Experiment) -> str:
    """16 hexadecimal digits of the SHA-256 of what decides the result; equal experiments have equal ones.

    Fields whose metadata says "operational" (where files go, the mesh, how often is logged and saved) are left out, and
    the order of mappings does not matter.
    """
    canonical = json.dumps(_draft(experiment).data(decisive=True), sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def difference(a: Experiment, b: Experiment) -> list[str]:
    """Where the results of two experiments may differ: "model.fusion.depth: 2 -> 4", one line a key."""
    left, right = (_decisive(experiment) for experiment in (a, b))
    lines: dict[str, str] = {}
    for key in [*left, *(key for key in right if key not in left)]:
        x, y = left.get(key, "(absent)"), right.get(key, "(absent)")
        # Below a node of another class everything differs, which says nothing more.
        covered = (key not in left or key not in right) and any(key.startswith(f"{parent}.") for parent in lines)
        if x != y and not covered:
            lines[key] = f"{key}: {x} -> {y}"
    return list(lines.values())


def write(experiment: Experiment, run_dir: str | Path) -> Path:
    """Write `experiment.json` into a run directory, whole or not at all, and return its path.

    Beside it goes what is kept of the user's own modules.
    """
    path = files.local_path(run_dir) / FILE
    whole = {"format": FORMAT, "fingerprint": fingerprint(experiment), "experiment": _draft(experiment).data()}
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = modules.digests(experiment)
        if own:
            files.write_atomic(path.parent / MODULES, json.dumps(own, indent=2) + "\n")
        else:
            (path.parent / MODULES).unlink(missing_ok=True)
    return files.write_atomic(path, json.dumps(whole, indent=2, allow_nan=False) + "\n")


def has_begun(run_dir: str | Path) -> bool:
    """Whether a run has taken a step in a directory: metrics were logged or a checkpoint was saved."""
    folder = files.local_path(run_dir)
    log = folder / "metrics.jsonl"
    return (log.exists() and log.stat().st_size > 0) or any((folder / FOLDER).glob("*"))


def check_owner(experiment: Experiment, run_dir: str | Path) -> None:
    """Raise UserError where a run directory belongs to another experiment, which it does from its first step on."""
    if (files.local_path(run_dir) / FILE).exists():
        other = read(run_dir)
        if has_begun(run_dir) and fingerprint(other) != fingerprint(experiment):
            lines = difference(other, experiment)
            shown = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")
            raise UserError(f"{run_dir} belongs to another experiment ({shown}); set another run_dir")


def claim(experiment: Experiment, run_dir: str | Path) -> Path:
    """Write `experiment.json` into a run directory that is new, of the same experiment, or of one that took no step.

    Raises UserError, and touches nothing, where the directory belongs to another experiment.
    """
    check_owner(experiment, run_dir)
    return write(experiment, run_dir)


def read(run_dir: str | Path) -> Experiment:
    """The experiment of a run directory. Raises UserError where there is none, or one that was damaged or changed.

    It imports nothing: a class of the user's must be imported before. A line on standard error says where the file of
    one has changed since the run trained with it.
    """
    path = files.local_path(run_dir) / FILE
    try:
        source = files.read_regular(path, LARGEST_EXPERIMENT).decode()
    except FileNotFoundError as error:
        raise UserError(f"{run_dir} is no run directory: it holds no {FILE}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it holds bytes that are no UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    whole = _parse(source, str(path))
    if not isinstance(whole, dict) or set(whole) != {"format", "fingerprint", "experiment"}:
        raise UserError(f"{path} does not hold exactly the keys format, fingerprint and experiment")
    if whole["format"] != FORMAT:
        raise UserError(f"{path} has the format {whole['format']!r:.20}, and this version of mmjax reads {FORMAT}")
    experiment = _make(whole["experiment"], str(path))
    if fingerprint(experiment) != whole["fingerprint"]:
        raise UserError(f"{path} was changed after the run wrote it: its content is not what its fingerprint says")
    for line in modules.changed(_kept_digests(path.parent / MODULES), modules.digests(experiment)):
        _say_once(f"{run_dir}: {line}")
    return experiment


def _kept_digests(path: Path) -> modules.Digests:
    """What `write` noted; nothing where there is no such file or it is damaged, for nothing hangs on it."""
    try:
        kept = files.read_json(path)
        return {name: {"file": str(entry["file"]), "sha256": str(entry["sha256"])} for name, entry in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _draft(experiment: Experiment) -> tree.ConfigNode:
    return tree.tree_of_value(experiment, "", Experiment, "experiment", final=True)


def _decisive(experiment: Experiment) -> dict[str, str]:
    """What decides the result, by key. Mappings and tuples are told by what is in them."""
    parts = (part for part in _draft(experiment).walk(decisive=True) if part.key)
    return {part.key: part.shown() for part in parts if not isinstance(part, tree.MappingNode | tree.TupleNode)}


def _make(data: Any, file: str) -> Experiment:
    try:
        return tree.tree_of_json(data, "", Experiment, file).make()
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _parse(source: str, file: str) -> Any:
    """JSON with each key once and without NaN, which are no JSON. Raises UserError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return seen

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(source, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{file} is no valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON, perhaps cut short ({error})") from error
