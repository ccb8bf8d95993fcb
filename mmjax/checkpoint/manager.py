"""Checkpoints of a run: saved in the background by Orbax, with checksums, restored onto any mesh.

A run directory holds `checkpoints/STEP/`, one folder per checkpoint: `state/` (arrays by path name, Orbax), `extra/`
(JSON) and the checksums of `mmjax.checkpoint.integrity`, which say what step of what run it is. They are written before
Orbax renames the folder to its final name, so a folder of that name without them, of another step or run, or with
other contents, is damaged. Nothing in a checkpoint is ever executed.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chz
import jax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from mmjax.buckets import is_remote, move, remove_tree
from mmjax.checkpoint.integrity import disk_problem, find_damage, silence_write_errors, write_checksums
from mmjax.errors import NoCheckpoint, UserError
from mmjax.files import read_json, step_of, to_path
from mmjax.layers.tree import named_leaves
from mmjax.sharding.distributed import barrier, gather_lines, is_main_process

FOLDER = "checkpoints"


@chz.chz
class Checkpoint:
    """When checkpoints are saved and which are kept: the newest ones and, with a metric, the best ones."""

    every: int = chz.field(default=500, doc="steps between checkpoints")
    keep: int = chz.field(default=3, doc="how many of the newest are kept")
    best_metric: str | None = chz.field(default=None, doc="keep the best by this too, as validation/label/accuracy")
    best_mode: Literal["max", "min"] = chz.field(default="max", doc="whether more or less of it is better")
    keep_best: int = chz.field(default=1, doc="how many of the best are kept")

    @chz.validate
    def _counts(self) -> None:
        for name in ("every", "keep", "keep_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"checkpoint.{name} must be at least 1, not {getattr(self, name)}")


class Restored(NamedTuple):
    """What a checkpoint gives back: the tree, the JSON saved with it, and the step."""

    state: Any
    extra: dict[str, Any]
    step: int


def run_folder(run_dir: str | Path) -> Path:
    """The path of a run directory. Raises UserError where Orbax writes no checkpoints: in s3:// and memory://."""
    path = to_path(run_dir)
    if is_remote(path) and not str(path).startswith("gs://"):
        raise UserError(
            f"run_dir={run_dir}: checkpoints are written to local folders and gs:// only; set another run_dir"
        )
    return path


class Checkpoints:
    """The checkpoints of one run directory. All processes must make the same calls.

    Args:
        run_dir: the run directory; checkpoints lie in its folder `checkpoints`, which is made if needed.
        config: which checkpoints are kept.
        fingerprints: of the run whose checkpoints these are, and of the shorter ones that it extends; those of others
            count as damaged. Empty: of any run.
        warn: is told, in one line, of every damaged checkpoint; called on every process.
        read_only: somebody else's run: nothing is written, renamed or removed.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(
        self,
        run_dir: str | Path,
        config: Checkpoint,
        *,
        fingerprints: Sequence[str] = (),
        warn: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self._folder = run_folder(run_dir).absolute() / FOLDER
        self._fingerprints, self._warn, self._read_only = fingerprints, warn, read_only
        self._keep = _Keep(config, self._folder)
        self._saving: int | None = None
        self._whole: set[int] = set()
        self._damaged: set[int] = set()
        self._open()

    def _open(self) -> None:
        import absl.logging
        import orbax.checkpoint as ocp

        absl.logging.get_absl_logger().addFilter(_is_not_orbax)
        silence_write_errors()
        # Weights do not compress; doing without takes a fifth of the time.
        self._handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        extra = ocp.JsonCheckpointHandler(filename="extra.json")
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("state", ocp.args.PyTreeSave, self._handler)
        registry.add("state", ocp.args.PyTreeRestore, self._handler)
        registry.add("extra", ocp.args.JsonSave, extra)
        registry.add("extra", ocp.args.JsonRestore, extra)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            step_name_format=_StepNames(ocp.path.step.standard_name_format()),
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            # No file of a step is read before it was verified.
            lightweight_initialize=True,
            async_options=ocp.options.AsyncOptions(
                # Made in the background, a folder that cannot be made leaves threads waiting for it for minutes.
                create_directories_asynchronously=False,
                post_finalization_callback=None if self._read_only else self._write_checksums,
            ),
        )
        with self._one_line():
            self._manager = ocp.CheckpointManager(str(self._folder), options=options, handler_registry=registry)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, or whose checkpoint is being written, oldest first."""
        return sorted(set(self._manager.all_steps()) - self._damaged)

    def save(self, step: int, state: Any, extra: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Starts saving `state` (a pytree of arrays), and returns when its arrays may be donated.

        Of a step that has a checkpoint already only the metrics are noted. A save still in progress is waited for
        first, and errors of it are raised here.

        Args:
            step: number of steps done.
            extra: small things that JSON can hold.
            metrics: what an evaluation of this very step found, in which `best_metric` is looked up; a checkpoint
                without it, or with NaN, is never among the best. None: the run has to stop between two checkpoints;
                this one goes as soon as there is a newer one, so that in the end it is as if the run had not stopped.

        Raises:
            UserError: the disk is full or cannot be written; `best_metric` is not among `metrics` where there are some.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in self.steps():
            self.note(step, metrics or {})
            for old in set(self.steps()) - self._keep.choose(self.steps()):
                self._manager.delete(old)
            return
        self._keep.note(step, metrics)
        self._whole.discard(step)
        self._saving = step
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(dict(named_leaves(state))),
            extra=ocp.args.JsonSave(
                {
                    "extra": dict(extra),
                    "metrics": None if metrics is None else {key: float(metrics[key]) for key in metrics},
                }
            ),
        )
        with self._one_line():
            self._manager.save(step, args=arguments, force=True)

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records an evaluation that came after the step's checkpoint was saved, because the run was stopped."""
        if metrics and self._keep.metrics(step) is not None:
            self._keep.note(step, metrics)

    def restore(self, abstract: Any, step: int | None = None, *, partial: bool = False) -> Restored | None:
        """The newest whole checkpoint (or that of `step`), sharded as `abstract`; None if there never was one.

        A damaged checkpoint is reported, moved to `checkpoints/damaged-STEP`, and the one before it is tried.

        Args:
            abstract: the tree to restore, of arrays or ShapeDtypeStructs. Their shardings are those of `jax.eval_shape`
                under `jax.set_mesh` of the mesh to restore to, which need not be that of the save.
            step: this step and no other.
            partial: what the checkpoint has beyond `abstract` is left alone, as in {"model": model}.

        Raises:
            UserError: the checkpoint is of something else, `step` has none or a damaged one, or all are damaged.
        """
        found = self.find(step)
        return None if found is None else self._read(found, abstract, partial)

    def find(self, step: int | None = None) -> int | None:
        """The newest step whose checkpoint is whole, or `step` if it is; errors and warnings as of `restore`."""
        self.wait()
        while (candidate := self._candidate(step)) is not None:
            damage = None if candidate in self._whole else self._find_damage(candidate)
            if damage is None:
                self._whole.add(candidate)
                return candidate
            self._move_away(candidate, damage)
        damaged = sorted(path.name for path in self._folder.glob("damaged-*")) + sorted(map(str, self._damaged))
        if damaged:
            raise UserError(
                f"no whole checkpoint is left in {self._folder}, only damaged ones ({', '.join(damaged)}); remove "
                "them to start from the beginning, or set another run_dir"
            )
        return None

    def contents(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every array in the checkpoint of `step`, by path name."""
        saved = self._handler.metadata(self._manager.directory / str(step) / "state").tree
        return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in saved.items()}

    def wait(self) -> None:
        """Returns when everything saved so far lies on the disk. Raises UserError where that failed."""
        with self._one_line():
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits for pending saves, as `wait` does, then stops the background threads."""
        with self._one_line():
            self._manager.close()

    def _write_checksums(self) -> None:
        """Writes checksums; Orbax calls it on a background thread when a step's files wait to be committed."""
        assert self._saving is not None
        # Where nothing can be renamed, the files lie in their place already, and a file in it says when it is whole.
        folder = next(self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), self._folder / str(self._saving))
        write_checksums(folder, self._saving, next(iter(self._fingerprints), None))

    def _find_damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None. Processes share the reading and all get the answer."""
        mine = {"part": jax.process_index(), "parts": jax.process_count()}
        damage = find_damage(self._folder / str(step), step, self._fingerprints, **mine)
        return next(iter(gather_lines([damage] if damage else [])), None)

    def _candidate(self, step: int | None) -> int | None:
        """The step to restore next; the lead decides, because others may see an older state of a shared file system."""
        steps = [
            int(line) for line in gather_lines([str(found) for found in self.steps()] if is_main_process() else [])
        ]
        if step is None:
            return steps[-1] if steps else None
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise NoCheckpoint(f"there is no whole checkpoint of step {step} in {self._folder}; those there: {there}")
        return step

    def _move_away(self, step: int, damage: str) -> None:
        """Reports a damaged checkpoint and takes it out of the way."""
        if self._read_only:
            self._damaged.add(step)
            return self._warn(f"checkpoint {step} in {self._folder} is damaged ({damage}) and passed over")
        names = [f"damaged-{step}"] + [f"damaged-{step}-{number}" for number in range(2, 100)]
        target = next(self._folder / name for name in names if not (self._folder / name).exists())
        self._warn(f"checkpoint {step} in {self._folder} is damaged ({damage}); moved to {target.name}")
        barrier("damaged")
        if is_main_process():
            with self._one_line():
                move(self._folder / str(step), target)
        barrier("moved away")
        # Not `reload`: it reads files of the other steps that nobody has verified.
        self._manager.close()
        self._open()

    def _read(self, step: int, abstract: Any, partial: bool) -> Restored:
        import orbax.checkpoint as ocp

        wanted = {name: _concrete(leaf) for name, leaf in named_leaves(abstract)}
        self._compare(step, wanted, partial)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=partial,
            ),
            extra=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=arguments)
        leaves = [restored["state"][name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        return Restored(state, restored["extra"]["extra"], step)

    def _compare(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], partial: bool) -> None:
        """Raises UserError where a checkpoint's arrays are not those wanted, naming the first differences."""
        saved = self.contents(step)
        differences = [f"it has no {name}" for name in wanted if name not in saved]
        differences += [
            f"{name} is {_shape(saved[name])} there and {_shape(leaf)} here"
            for name, leaf in wanted.items()
            if name in saved and _shape(saved[name]) != _shape(leaf)
        ]
        if not partial:
            differences += [f"it has {name} too" for name in saved if name not in wanted]
        if differences:
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"checkpoint {step} in {self._folder} is of another model or optimizer: {'; '.join(differences[:3])}"
                f"{more}; use the settings it was made with, or another run_dir"
            )

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns a disk's error in a save, now or in the background, into one line; removes what was written."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            problem = disk_problem(error)
            if problem is None:
                raise
            what = f"checkpoint {self._saving}" if self._saving is not None else "a checkpoint"
            if is_main_process():
                for left in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                    remove_tree(left)
            raise UserError(f"{what} could not be written in {self._folder}: {problem}") from error


class _StepNames:
    """Orbax's format of steps' names, which does not see folders whose name is not as `str` writes a step."""

    def __init__(self, standard: Any):
        self._standard = standard

    def build_name(self, step: int) -> str:
        return self._standard.build_name(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        return (found for found in self._standard.find_all(base_path) if step_of(found.path.name) is not None)

    def find_step(self, base_path: Any, step: int) -> Any:
        return self._standard.find_step(base_path, step)


class _Keep:
    """Orbax's preservation policy: the newest checkpoints and the best ones by their metrics."""

    def __init__(self, config: Checkpoint, folder: Path):
        self._config, self._folder = config, folder
        self._metrics: dict[int, Mapping[str, float] | None] = {}

    def note(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """Remembers how good a step is. Raises UserError where there are metrics but not the one to judge by."""
        name = self._config.best_metric
        if name is not None and metrics and name not in metrics:
            raise UserError(f"checkpoint.best_metric={name} is not among the metrics {', '.join(sorted(metrics))}")
        self._metrics[step] = metrics

    def metrics(self, step: int) -> Mapping[str, float] | None:
        """What is known of a step; None of one that is to be kept only while it is the newest."""
        if step not in self._metrics:
            self._metrics[step] = self._read(step)
        return self._metrics[step]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self.choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def choose(self, steps: Sequence[int]) -> set[int]:
        """Those of ascending steps whose checkpoints are kept; of equally good ones the earlier is better."""
        lasting = [step for step in steps if step == steps[-1] or self.metrics(step) is not None]
        scored = [step for step in lasting if self._score(step) > -math.inf]
        best = sorted(scored, key=self._score, reverse=True)
        return {*lasting[-self._config.keep :], *best[: self._config.keep_best]}

    def _score(self, step: int) -> float:
        """Higher is better; -inf where nothing is known."""
        value = (self.metrics(step) or {}).get(self._config.best_metric or "", math.nan)
        if not isinstance(value, int | float) or math.isnan(value):
            return -math.inf
        return value if self._config.best_mode == "max" else -value

    def _read(self, step: int) -> Mapping[str, float] | None:
        try:
            metrics = read_json(self._folder / str(step) / "extra" / "extra.json")["metrics"]
            return None if metrics is None else dict(metrics)
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _concrete(leaf: Any) -> jax.ShapeDtypeStruct:
    """The leaf with its sharding on real devices: `jax.eval_shape` gives one on an abstract mesh, or none."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    else:
        sharding = NamedSharding(
            mesh, leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else PartitionSpec()
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs the traces of errors it also raises."""
    return "orbax" not in record.pathname
