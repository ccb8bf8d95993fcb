"""A trained model out of a run directory, for whoever uses it."""

import contextlib
import functools
import sys
import time
from pathlib import Path

import jax

from mmjax.buckets import is_remote
from mmjax.checkpoint.integrity import COMMITTED, find_damage, stored_fingerprints
from mmjax.checkpoint.manager import FOLDER, Checkpoint, Checkpoints
from mmjax.errors import NoCheckpoint, UserError
from mmjax.files import step_of, to_path
from mmjax.model import Model, Multimodal, build_model
from mmjax.sharding.rules import Rules
from mmjax.types import Feature

# How long the files of one checkpoint may take to be removed.
REMOVAL_SECONDS = 5


def saved_steps(run_dir: str | Path) -> list[int]:
    """The steps of a run's finished checkpoints, oldest first, damaged ones included."""
    folder = to_path(run_dir) / FOLDER
    steps = sorted(step for path in folder.glob("*") if (step := step_of(path.name)) is not None)
    # In a bucket a checkpoint is written in its place, and is whole when it has this file.
    return [step for step in steps if (folder / str(step) / COMMITTED).exists()] if is_remote(folder) else steps


def restore_model(
    model: Model,
    run_dir: str | Path,
    features: dict[str, Feature],
    rules: Rules,
    step: int | None = None,
    *,
    ema: bool = False,
) -> tuple[Multimodal, int]:
    """The model of a checkpoint, built on the current mesh, and the checkpoint's step.

    The run may still be training: nothing in its directory is touched.

    Args:
        model: the run's model configuration.
        run_dir: the run directory.
        features: those of the run's data, with its tokenizers.
        rules: how parameters are split over the mesh.
        step: which checkpoint; None: the newest whole one.
        ema: restore the moving average of the parameters (`train.ema`) in place of the parameters themselves.

    Raises:
        UserError: there is no such checkpoint.
        NoCheckpoint: the run has removed the checkpoint of `step`.
    """
    while True:
        steps = saved_steps(run_dir)
        try:
            return _restore(model, run_dir, features, rules, step, ema)
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
    folder = to_path(run_dir) / FOLDER
    for _ in range(REMOVAL_SECONDS):
        there = set(steps).intersection(saved_steps(run_dir))
        if all(find_damage(folder / str(step), step) is None for step in there):
            break
        time.sleep(1)
    return set(steps) - set(saved_steps(run_dir))


def _restore(
    model: Model, run_dir: str | Path, features: dict[str, Feature], rules: Rules, step: int | None, ema: bool
) -> tuple[Multimodal, int]:
    build = functools.partial(build_model, model=model, features=features, rules=rules)
    part = "ema" if ema else "model"
    wanted = {part: jax.eval_shape(build, jax.random.key(0))}
    warn = functools.partial(print, file=sys.stderr, flush=True)
    fingerprints = stored_fingerprints(run_dir)
    checkpoints = Checkpoints(run_dir, Checkpoint(), fingerprints=fingerprints, warn=warn, read_only=True)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(wanted, step, partial=True)
    if restored is None:
        others = sorted(path.name for path in (to_path(run_dir) / FOLDER).glob("*") if step_of(path.name) is None)
        also = f" ({others[0]} in {FOLDER} is not named as a step is)" if others else ""
        raise UserError(f"{run_dir} has no checkpoint{also}; a run saves its first after checkpoint.every steps")
    return restored.state[part], restored.step
