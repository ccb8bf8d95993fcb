"""Extending a run that has begun to more `train.steps`."""

from pathlib import Path

from mmjax import files
from mmjax.buckets import copy_tree, move
from mmjax.checkpoint.manager import FOLDER
from mmjax.checkpoint.restore import saved_steps
from mmjax.config.experiment import Experiment
from mmjax.errors import UserError

KEYS = ("train.steps", "train.replan")
"""The keys that an extension may change."""


def start_of_extension(old: Experiment, new: Experiment, run_dir: str | Path, critics: bool) -> int:
    """The checkpoint from which a run with more steps goes on; 0 where none was saved yet.

    Args:
        old: the experiment of the run directory.
        new: the same with more steps.
        run_dir: the run directory.
        critics: whether the model has critics, whose learning rate counts, too.

    Raises:
        UserError: `new` has fewer steps, or every kept checkpoint was trained with other rates than `new` has.
    """
    before, after = old.train.steps, new.train.steps
    if after < before:
        raise UserError(
            f"train.steps={after} is fewer than the {before} of the run in {run_dir}, and a run can only be extended; "
            f"set train.steps={before} or another run_dir"
        )
    saved = saved_steps(run_dir)
    newest = max(saved, default=0)
    if after == before or new.train.replan:
        return newest
    optimizers = {"optimizer": new.optimizer} | ({"critic_optimizer": new.critic_optimizer} if critics else {})
    limits = {f"{key}.schedule": each.schedule.extendable_until(before) for key, each in optimizers.items()}
    key = min(limits, key=lambda key: limits[key])
    kept = [step for step in saved if step <= limits[key]]
    if newest and not kept:
        schedule = type(optimizers[key.partition(".")[0]].schedule).__name__
        raise UserError(
            f"train.steps={after} cannot extend the {before} steps of {run_dir}: after step {limits[key]} the rates of "
            f"{key}={schedule} depend on the number of steps, and the first checkpoint kept is {saved[0]}; set "
            f"train.replan=true to go on from step {newest} with the rates of {after} steps, or another run_dir"
        )
    return max(kept, default=0)


def keep_shorter_run(run_dir: str | Path, start: int) -> Path | None:
    """Copies a run to shorter.N in its directory, and moves its later checkpoints and evaluations there.

    `start` is the last step that stays. Returns the copy's folder, or None where there is nothing after `start`.
    """
    run_dir = files.to_path(run_dir)
    later = [step for step in saved_steps(run_dir) if step > start]
    if not later:
        return None
    copy = files.free_path(run_dir / "shorter")
    with files.explained(copy):
        copy_tree(run_dir, copy, ("shorter.*", ".lock", "tensorboard", FOLDER))
        (copy / FOLDER).mkdir()
        # Oldest last: whenever this is interrupted, the newest checkpoint left is one of the shorter run or `start`.
        for step in reversed(later):
            move(run_dir / FOLDER / str(step), copy / FOLDER / str(step))
            (run_dir / "evaluations" / f"{step}.json").unlink(missing_ok=True)
    return copy
