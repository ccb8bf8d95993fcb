"""The one training loop: evaluation, checkpoint, batch, step, log, stop."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding

from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.errors import Diverged, UserError
from mmjax.sharding.mesh import choose_rules
from mmjax.signals import end_at_once, preemption_guard
from mmjax.training.run_dir import RunDir
from mmjax.training.run_group import RunGroup, check_memory, groups_that_fit
from mmjax.training.train_program import TrainProgram


def train(experiment: Experiment) -> Path | None:
    """Trains an experiment to its last step, from where its run directory stands.

    Returns the path of its summary, or None in a process that is not the lead. Raises UserError for what the user can
    fix, Preempted after a SIGTERM or a Ctrl-C was answered with a checkpoint, and Diverged, when the report is
    written, where too many steps in a row were not finite.
    """
    return train_together([experiment])[0]


def train_together(experiments: Sequence[Experiment]) -> list[Path | None]:
    """Trains experiments that differ only in seed and run directory under one program; see `train`.

    Each has the run directory, and up to rounding the losses, that it would have alone. As many are trained together as
    fit into the devices' memory and are at the same step, the others after them.
    """
    experiments = experiment_file.resolve_runs(experiments)
    experiments = experiment_file.resolve_runs(experiments)
    first = experiments[0]
    _check_best_metric(first)
    mesh = first.mesh.build()
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        rules = choose_rules(first.rules, mesh)
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        preempted = resources.enter_context(preemption_guard())
        with end_at_once():
            runs = [RunDir(experiment, sharding) for experiment in experiments]
            for line in runs[0].warnings:
                runs[0].print(line)
            program = TrainProgram(first, runs[0].data, rules)
            if runs[0].new:
                program.check_origins()
            check_memory(program)
            states = [run.open(program.abstract_state, resources) for run in runs]
        paths: dict[RunDir, Path | None] = {}
        for group in groups_that_fit(program, runs, states, preempted):
            paths |= dict(zip(group.runs, train_loop(group), strict=True))
        return [paths[run] for run in runs]


def train_loop(run: RunGroup) -> list[Path | None]:
    """Trains to the last step, then evaluates, saves and reports. Returns the path of each run's summary."""
    train, checkpoint = run.experiment.train, run.experiment.checkpoint
    try:
        with run.training():
            for step in range(run.start, train.steps):
                # The session before may have done what was due after `run.start` steps.
                if step > run.start or run.stopped_before_evaluation:
                    # Due evaluation of the state after `step` steps.
                    metrics = run.evaluate(step, "validation") if step % train.evaluate_every == 0 else None

                    # Due checkpoint, with the metrics of that evaluation.
                    if step % checkpoint.every == 0:
                        run.save(step, metrics)

                # Batch: a function of seed and step, made while the steps before run.
                batch = run.next_batch()

                # Step: dispatched to the devices, not waited for.
                run.train_step(step, batch)
                done = step + 1

                # Log: waits for the devices, and raises Diverged where too many steps were not finite.
                log_due = done % train.log_every == 0 or done in (run.start + 1, train.steps)
                if log_due:
                    run.log(done)

                # Stop, if a signal asked for it: several processes agree on that, which costs time, at logged steps.
                if log_due or jax.process_count() == 1:
                    run.stop_if_asked(done)

        metrics = run.evaluate(train.steps, "validation", "test")
    except Diverged as error:
        run.report_failure(str(error))
        raise
    return run.finish(metrics)


def _check_best_metric(experiment: Experiment) -> None:
    """Raises UserError where `best_metric` is set and no checkpoint before the last one can have that metric."""
    metric, every = experiment.checkpoint.best_metric, experiment.checkpoint.every
    steps, evaluate_every = experiment.train.steps, experiment.train.evaluate_every
    if metric is None:
        return
    splits = experiment.data.source.splits
    if metric.partition("/")[0] != "validation" or "validation" not in splits:
        raise UserError(
            f"checkpoint.best_metric={metric} must be a metric of the validation split, such as "
            "validation/OUTPUT/loss: training evaluates only that one before its last step; the source has the splits "
            f"{', '.join(splits)}"
        )
    if min(every, evaluate_every) < steps <= math.lcm(every, evaluate_every):
        raise UserError(
            f"checkpoint.best_metric={metric} needs steps that are both evaluated and saved, and with "
            f"train.evaluate_every={evaluate_every} and checkpoint.every={every} no step before the last is; "
            "set both to the same number, or one to a multiple of the other, below train.steps"
        )
