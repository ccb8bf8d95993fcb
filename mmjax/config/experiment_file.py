"""experiment.json: an experiment as JSON, its fingerprint, and the owner of a run directory."""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax import buckets, files, growing_file
from mmjax.checkpoint.integrity import EXPERIMENT_FILE as FILE
from mmjax.checkpoint.integrity import LARGEST_EXPERIMENT, stored_fingerprints
from mmjax.checkpoint.manager import FOLDER
from mmjax.checkpoint.restore import saved_steps
from mmjax.config import extension, modules, tree
from mmjax.config.experiment import Experiment, resolve_machine
from mmjax.errors import UserError
from mmjax.hardware.machine import this_machine
from mmjax.sharding.distributed import barrier, gather_lines, is_main_process

FORMAT = 3
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
    canonical = json.dumps(_draft(experiment).data(for_fingerprint=True), sort_keys=True, allow_nan=False)
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


def write(experiment: Experiment, run_dir: str | Path, earlier: Sequence[str] = (), file: str = FILE) -> Path:
    """Write `experiment.json` into a run directory, whole or not at all, and return its path.

    `earlier` are the fingerprints that the run had before it was extended. Beside it goes what is kept of the user's
    own modules.
    """
    path = files.to_path(run_dir) / file
    about = {"format": FORMAT, "fingerprint": fingerprint(experiment), "earlier": list(earlier)}
    whole = about | {"experiment": _draft(experiment).data()}
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
    folder = files.to_path(run_dir)
    return growing_file.has_content(folder / "metrics.jsonl") or any((folder / FOLDER).glob("*"))


def _begun(run_dir: str | Path) -> Experiment | None:
    """The experiment that has taken a step in a directory, or None. Raises UserError as `read` does."""
    # Before the first step the file may be damaged, or name classes that are not imported.
    return read(run_dir) if has_begun(run_dir) and (files.to_path(run_dir) / FILE).exists() else None


def check_owner(experiment: Experiment, run_dir: str | Path, critics: bool = False) -> int | None:
    """The step from which a run directory's run goes on with another experiment; None where it is the same.

    Raises UserError where the directory belongs to another experiment, which it does from its first step on, or to one
    that cannot be extended (see `mmjax.config.extension`).
    """
    other = _begun(run_dir)
    if other is None or fingerprint(other) == fingerprint(experiment):
        return None
    lines = difference(other, experiment)
    keys = {line.partition(":")[0] for line in lines}
    of_source = {key for key in keys if key.startswith("data.source")}
    old, new = other.data.source, experiment.data.source
    packing, step = experiment.data.packing, max(saved_steps(run_dir), default=0)
    settled = step if packing is None else packing.next_window(step)
    changed = new.changed(old, settled) if of_source else None
    differs = of_source or experiment.train.steps != other.train.steps
    if changed is None and differs and keys - of_source <= set(extension.KEYS):
        return extension.start_of_extension(other, experiment, run_dir, critics)
    shown = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")
    reason = f"{changed}; " if changed else ""
    raise UserError(
        f"{run_dir} belongs to another experiment ({shown}); {reason}set another run_dir, or fresh=true for "
        "launch.train to move it aside"
    )


def claim(experiment: Experiment, run_dir: str | Path, critics: bool = False) -> list[str]:
    """Write `experiment.json` into a run directory that this experiment may use.

    That is one that is new, of the same experiment, of one that took no step, or of one with fewer steps, which is then
    extended. Returns the fingerprints that its checkpoints may have, the
    run's own first. Raises UserError, and touches nothing, as `check_owner` does.
    """
    begun = _begun(run_dir)
    start, earlier = check_owner(experiment, run_dir, critics), []
    if has_begun(run_dir):
        own = fingerprint(experiment)
        earlier = [each for each in stored_fingerprints(run_dir) if each != own]
    if start is not None:
        kept = extension.keep_shorter_run(run_dir, start)
        more = f"; the shorter run, whose later checkpoints it cannot use, is kept in {kept}" if kept else ""
        steps = experiment.train.steps
        longer = begun is not None and begun.train.steps != steps
        does = f"extending {run_dir} to {steps} steps" if longer else f"continuing {run_dir} with the changed mixture"
        _say_once(f"{does} from step {start}{more}")
    write(experiment, run_dir, earlier)
    return [fingerprint(experiment), *earlier]


def lock(run_dir: str | Path) -> contextlib.AbstractContextManager[None]:
    """Holds a run directory for this process. Raises UserError where another process trains in it."""
    taken = f"another process is training in {run_dir}; wait until it ends, or set another run_dir"
    return files.locked(files.to_path(run_dir) / ".lock", taken)


def move_aside(run_dir: str | Path) -> None:
    """Renames a run directory to RUN_DIR.1, or the next free number. All processes must call it.

    Raises UserError where another process trains in it, or where it is not a run directory.
    """
    folder = files.to_path(run_dir)
    if is_main_process() and folder.is_dir() and any(folder.iterdir()):
        if not (folder / FILE).exists():
            raise UserError(f"fresh=true moves run directories, and {run_dir} has no {FILE}; set another run_dir")
        with lock(run_dir), files.explained(folder):
            moved = files.free_path(folder)
            buckets.move(folder, moved)
        _say_once(f"moved {run_dir} to {moved}")
    barrier("moved aside")


def resolve_runs(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Experiments that share a program, with what they leave to the machine filled in.

    All processes must call it. Where `model.dtype` is "auto", a run that has begun keeps the dtype that it began with.
    """
    machine = this_machine()
    if experiments[0].model.dtype == "auto":
        dtype: Any = machine.dtype
        for run_dir in [experiment.run_dir for experiment in experiments] if is_main_process() else []:
            begun = _begun(run_dir)
            if begun is not None and begun.model.dtype not in ("auto", dtype):
                dtype = begun.model.dtype
                _say_once(f"{run_dir} goes on in {dtype}, as it began; model.dtype=auto is {machine.dtype} here")
                break
        # Hosts may differ; their programs must not.
        dtype = gather_lines([dtype] if is_main_process() else [])[0]
        machine = dataclasses.replace(machine, dtype=dtype)
    return [resolve_machine(experiment, machine) for experiment in experiments]


def read(run_dir: str | Path, file: str = FILE) -> Experiment:
    """The experiment of a run directory, or of the `file` of an export.

    Raises UserError where there is none, or one that was damaged or changed. It imports nothing: a class of the user's
    must be imported before. A line on standard error says where the file of one has changed since the run trained with
    it.
    """
    path = files.to_path(run_dir) / file
    try:
        source = files.read_regular(path, LARGEST_EXPERIMENT).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        near = ", ".join(_near(path.parent)) or "none"
        raise UserError(
            f"{run_dir} is not a run directory: it has no {FILE}; run directories nearby: {near}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged, it is not UTF-8 text: restore or delete it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    whole = _parse(source, str(path))
    if isinstance(whole, dict) and whole.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has the format {whole['format']!r:.20}, and this version of mmjax reads {FORMAT}")
    if not isinstance(whole, dict) or set(whole) != {"format", "fingerprint", "earlier", "experiment"}:
        raise UserError(f"{path} does not hold exactly the keys format, fingerprint, earlier and experiment")
    experiment = _make(whole["experiment"], str(path))
    if fingerprint(experiment) != whole["fingerprint"]:
        raise UserError(f"{path} was changed after the run wrote it: its content is not what its fingerprint says")
    for line in modules.changed(_kept_digests(path.parent / MODULES), modules.digests(experiment)):
        _say_once(f"{run_dir}: {line}")
    return experiment


def _near(folder: Path, most: int = 3) -> list[str]:
    """The run directories in a folder, beside it, and where runs are by default, the most similar names first."""
    found: set[str] = set()
    for place in (folder, folder.parent, Path("runs")):
        with contextlib.suppress(OSError):
            found |= {str(path.parent) for path in place.glob(f"*/{FILE}")}
    return sorted(found, key=lambda name: -difflib.SequenceMatcher(None, name, str(folder)).ratio())[:most]


def _kept_digests(path: Path) -> modules.Digests:
    """The digests that `write` stored; empty where the file is missing or damaged."""
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
    """The values that decide the result, by key; mappings and tuples by their items."""
    parts = (part for part in _draft(experiment).walk(for_fingerprint=True) if part.key)
    return {part.key: part.shown() for part in parts if not isinstance(part, tree.MappingNode | tree.TupleNode)}


def _make(data: Any, file: str) -> Experiment:
    try:
        return tree.tree_of_json(data, "", Experiment, file).make()
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _parse(source: str, file: str) -> Any:
    """Parses JSON with each key once and without NaN. Raises UserError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            raise ValueError("a key is given twice in one object")
        return seen

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(source, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{file} is not valid JSON (nested too deeply)") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON, perhaps cut short ({error})") from error
