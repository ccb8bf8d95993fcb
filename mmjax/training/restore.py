"""A trained model out of a run directory, for whoever uses it."""

import contextlib
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from mmjax.errors import NoCheckpoint, UserError
from mmjax.files import local_path, step_of
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.training.checkpoint import FOLDER, Checkpoints
from mmjax.training.seal import find_damage
from mmjax.training.state import build_model
from mmjax.types import Feature

if TYPE_CHECKING:
    from mmjax.config import Experiment


# How long the files of one checkpoint may take to be removed.
REMOVAL_SECONDS = 5


def saved_steps(run_dir: str | Path) -> list[int]:
    """The steps of a run's finished checkpoints, oldest first; whether they are whole shows when they are read."""
    folder = local_path(run_dir) / FOLDER
    return sorted(step for path in folder.glob("*") if (step := step_of(path.name)) is not None)


def restore_model(
    experiment: "Experiment", run_dir: str | Path, features: dict[str, Feature], rules: Rules, step: int | None = None
) -> tuple[Multimodal, int]:
    """The model that a run, finished or not, is judged by, on the current mesh; and after how many steps it is so.

    `features` are those of the run's data, bound; `step` says which checkpoint, the newest whole one by default. The
    run may go on meanwhile: nothing in its directory is touched. Raises UserError where there is no such checkpoint,
    NoCheckpoint where the run has removed that of `step`.
    """
    while True:
        steps = saved_steps(run_dir)
        try:
            return _restore(experiment, run_dir, features, rules, step)
        except Exception as error:
            removed = _removed(run_dir, steps)
            if step is None and removed:
                continue
            if step in removed:
                raise NoCheckpoint(f"checkpoint {step} of {run_dir} was removed while it was read") from error
            raise


def _removed(run_dir: str | Path, steps: list[int]) -> set[int]:
    """Which of the checkpoints that there were are gone, or about to be.

    Files go one after the other, so that of one that is being removed anything may be missing for a while.
    """
    folder = local_path(run_dir) / FOLDER
    for _ in range(REMOVAL_SECONDS):
        there = set(steps).intersection(saved_steps(run_dir))
        if all(find_damage(folder / str(step), step) is None for step in there):
            break
        time.sleep(1)
    return set(steps) - set(saved_steps(run_dir))


def _restore(
    experiment: "Experiment", run_dir: str | Path, features: dict[str, Feature], rules: Rules, step: int | None
) -> tuple[Multimodal, int]:
    from mmjax.config import stored_fingerprint

    build = functools.partial(build_model, model=experiment.model, features=features, rules=rules)
    part = "model" if experiment.train.ema is None else "ema"
    wanted = {part: jax.eval_shape(build, jax.random.key(0))}
    warn = functools.partial(print, file=sys.stderr, flush=True)
    checkpoints = Checkpoints(
        run_dir, experiment.checkpoint, fingerprint=stored_fingerprint(run_dir), warn=warn, read_only=True
    )
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(wanted, step, partial=True)
    if restored is None:
        raise UserError(
            f"{run_dir} has no checkpoint yet; the first is saved after {experiment.checkpoint.every} steps"
        )
    return restored.state[part], restored.step
