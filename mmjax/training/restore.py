"""A trained model out of a run directory, for whoever uses it."""

import contextlib
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from mmjax.errors import UserError
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.state import build_model
from mmjax.types import Feature

if TYPE_CHECKING:
    from mmjax.config import Experiment


def restore_model(
    experiment: "Experiment", run_dir: str | Path, features: dict[str, Feature], rules: Rules, step: int | None = None
) -> tuple[Multimodal, int]:
    """The model that a run, finished or not, is judged by, on the current mesh; and after how many steps it is so.

    `features` are those of the run's data, bound; `step` says which checkpoint, the newest whole one by default. The
    run may go on meanwhile: nothing in its directory is touched. Raises UserError where there is no such checkpoint.
    """
    build = functools.partial(build_model, model=experiment.model, features=features, rules=rules)
    part = "model" if experiment.train.ema is None else "ema"
    wanted = {part: jax.eval_shape(build, jax.random.key(0))}
    warn = functools.partial(print, file=sys.stderr, flush=True)
    checkpoints = Checkpoints(run_dir, experiment.checkpoint, warn=warn, read_only=True)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(wanted, step, partial=True)
    if restored is None:
        raise UserError(
            f"{run_dir} has no checkpoint yet; the first is saved after {experiment.checkpoint.every} steps"
        )
    return restored.state[part], restored.step
