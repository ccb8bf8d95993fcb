"""The one training loop: restore -> (evaluate -> checkpoint -> batch -> step -> metrics)*."""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding

from mmjax.checkpoint.initialize import check_origin
from mmjax.compilation import jit_once
from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import DeviceBatch, DevicePrefetcher
from mmjax.data.loader import BadValueMonitor, HostBatch
from mmjax.errors import Diverged, Preempted, UserError
from mmjax.hardware.flops import peak_flops
from mmjax.sharding.distributed import any_process
from mmjax.sharding.mesh import choose_rules
from mmjax.signals import end_at_once, preemption_guard
from mmjax.training.program import Program
from mmjax.training.progress import Progress
from mmjax.training.run import RunDir
from mmjax.training.state import TrainState
from mmjax.types import Metrics
from mmjax.vmap_runs import stack, unstack


def train(experiment: Experiment) -> Path | None:
    """Run an experiment to its end, from where its run directory stands.

    Returns the path of its summary, or None in a process that is not the lead. Raises UserError for what the user can
    mend, Preempted after a SIGTERM or a Ctrl-C was answered with a checkpoint, and Diverged, when the report is
    written, where too many steps in a row were not finite.
    """
    return train_together([experiment])[0]


def train_together(experiments: Sequence[Experiment]) -> list[Path | None]:
    """Run experiments that differ in seed and run directory only, under one compiled program; see `train`.

    Each has the run directory, and up to rounding the losses, that it would have alone. As many go together as fit into
    the devices' memory and stand at the same step, the rest after them.
    """
    first = experiments[0]
    _check_best(first)
    mesh = first.mesh.build()
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        rules = choose_rules(first.rules, mesh)
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        preempted = resources.enter_context(preemption_guard())
        with end_at_once():
            runs = [RunDir(experiment, sharding) for experiment in experiments]
            program = Program(first, runs[0].data, rules)
            if first.train.initialize is not None and runs[0].new:
                check_origin(program.abstract.model, first.train.initialize)
            _check_memory(program)
            states = [run.open(program.abstract, resources) for run in runs]
        paths: dict[int, Path | None] = {}
        starts = [run.start for run in runs]
        order = sorted(range(len(runs)), key=starts.__getitem__)
        waiting = [list(group) for _, group in itertools.groupby(order, starts.__getitem__)]
        while waiting:
            group = waiting.pop(0)
            with end_at_once():
                loop = Loop(program, [runs[index] for index in group], [states[index] for index in group], preempted)
                fits = len(group) == 1 or loop.fits
            if not fits:
                half = (len(group) + 1) // 2
                waiting = [group[:half], group[half:], *waiting]
                continue
            paths |= dict(zip(group, loop.finish(), strict=True))
        return [paths[index] for index in range(len(runs))]


class Loop:
    """Runs in progress, all at the same step."""

    def __init__(
        self, program: Program, runs: list[RunDir], states: list[TrainState | None], preempted: Callable[[], bool]
    ):
        """`states` are those restored, None for a run that is to begin."""
        self.program, self.runs, self.preempted = program, runs, preempted
        self.train, self.lead = program.experiment.train, runs[0].lead
        self.start = runs[0].start
        begun = [program.begin(run) if state is None else state for run, state in zip(runs, states, strict=True)]
        alone = len(runs) == 1
        self.state = begun[0] if alone else jit_once(stack)(begun)
        self.keys = stack([run.key for run in runs])
        self.evaluator = program.evaluator(len(runs))

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        return self.program.compile(self.state, self.keys, len(self.runs))

    @property
    def _peak_bytes(self) -> int:
        """What a step needs on each device, by the compiler's own account."""
        memory = self._compiled.memory_analysis()
        if memory is None:  # not every backend tells
            return 0
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return total - memory.alias_size_in_bytes

    @property
    def fits(self) -> bool:
        """Whether the devices have the memory for a step, and some to spare."""
        if self.start == self.train.steps:
            return True
        return self._peak_bytes < 0.8 * _device_memory()

    def finish(self) -> list[Path | None]:
        """All steps that are left, and what is written at the end. Returns the summaries' paths."""
        try:
            if self.start < self.train.steps:
                self._train()
            metrics = self._evaluate(self.train.steps, ("validation", "test"))
        except Diverged as error:
            reason = str(error)
            self._each(lambda run, state, looks: run.report_failure(state, looks, reason))
            raise
        self._save(self.train.steps, metrics)
        final = iter(metrics)
        return self._each(lambda run, state, looks: run.finish(state, looks, next(final)))

    def _each(self, function: Callable) -> list:
        """`function` of every run, its state, and a batch with predictions to look at. All processes must call it."""
        host, *predictions = self.evaluator.first(self.state.judged, self.program.data.source.splits[-1])
        each = zip(self.runs, self._states(), predictions, strict=True)
        return [function(run, state, (host, predicted)) for run, state, predicted in each]

    def _states(self) -> list[TrainState]:
        """The state of every run."""
        count = len(self.runs)
        return [self.state] if count == 1 else self._unstack(self.state)

    @functools.cached_property
    def _unstack(self) -> Callable[[TrainState], list[TrainState]]:
        return jit_once(functools.partial(unstack, count=len(self.runs)))

    def _train(self) -> None:
        train = self.train
        # Measured, on a CPU, before the loaders take a part of it.
        peak = peak_flops(self.program.experiment.model.dtype)[0] * jax.device_count()
        pending: list[Metrics] = []
        with contextlib.ExitStack() as resources:
            setup = resources.enter_context(contextlib.ExitStack())
            setup.enter_context(end_at_once())
            feeds = [DevicePrefetcher(run.loader, self.program.sharding, self.start, train.steps) for run in self.runs]
            for feed in feeds:
                resources.enter_context(feed)
            self.runs[0].say("compiling the step")
            compiled = self._compiled  # while the first batches are made
            self.progress = Progress(
                train.steps,
                self.start,
                examples_per_step=train.batch_size * len(self.runs),
                model_flops=self.program.model_flops * len(self.runs),
                peak=peak,
                enabled=self.lead,
            )
            resources.callback(self.progress.close)
            for step in range(self.start, train.steps):
                if step > self.start or self._stopped_before_evaluation:
                    self._between_steps(step)
                placed = self._next(feeds, pending)
                setup.close()  # from the first step on there is something to lose
                self.state, metrics = compiled(self.state, [each.batch for each in placed], self.keys)
                for run, each in zip(self.runs, placed, strict=True):
                    run.account(step, each.host)
                pending.append(metrics)
                done = step + 1
                if done % train.log_every == 0 or done in (self.start + 1, train.steps):
                    self._log(done, pending)
                    pending = []
                    self._stop_if_asked(done)
                elif jax.process_count() == 1:
                    self._stop_if_asked(done)

    def _next(self, feeds: list[DevicePrefetcher], pending: list[Metrics]) -> list[DeviceBatch]:
        """The next batches. At most two steps are on their way.

        The wait for them counts if the devices had run out of work by its end.
        """
        if len(pending) > 1:
            jax.block_until_ready(pending[-2])
        placed = [next(feed) for feed in feeds]
        if pending and jax.tree.leaves(pending[-1]["loss"])[0].is_ready():
            for run, feed in zip(self.runs, feeds, strict=True):
                run.waited += feed.last_wait
        return placed

    @property
    def _stopped_before_evaluation(self) -> bool:
        """Whether the session before ended between the step it ended with and the evaluation that was due then."""
        due = self.start > 0 and self.start % self.train.evaluate_every == 0
        return due and any(self.start not in run.evaluated for run in self.runs)

    def _between_steps(self, step: int) -> None:
        """What is due after `step` steps: an evaluation, then a checkpoint, which has the metrics of that one only."""
        metrics: list[dict[str, float]] = [{}] * len(self.runs)
        if step % self.train.evaluate_every == 0:
            with self.progress.pause():
                metrics = self._evaluate(step, ("validation",))
        if step % self.program.experiment.checkpoint.every == 0:
            with self.progress.pause():
                self._save(step, metrics)

    def _log(self, step: int, pending: list[Metrics]) -> None:
        """Writes the averages since the last line. Waits for the devices, once."""
        fetched = [unstack(metrics, len(self.runs)) for metrics in jax.device_get(pending)]
        losses = [each["loss"].figures("")[""] for each in fetched[-1]]
        rates = self.progress.update(step, sum(losses) / len(losses))
        more = {} if rates is None else rates.metrics()
        if step == self.start + 1:
            more["train/peak_bytes"] = self._peak_bytes / len(self.runs)
        for run, metrics in zip(self.runs, zip(*fetched, strict=True), strict=True):
            run.write_steps(step, list(metrics), more)

    def _stop_if_asked(self, step: int) -> None:
        """Answers a SIGTERM, or a Ctrl-C, to any process with a checkpoint."""
        if any_process(self.preempted()):
            is_due = step % self.program.experiment.checkpoint.every == 0 or step == self.train.steps
            self._save(step, [{} if is_due else None] * len(self.runs))
            for run in self.runs:
                run.checkpoints.wait()
            raise Preempted(f"stopped after step {step} with a checkpoint; the same command resumes")

    def _evaluate(self, step: int, splits: tuple[str, ...]) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = [{} for _ in self.runs]
        for split in splits:
            if split in self.program.data.source.splits:
                if step == self.train.steps:
                    self.runs[0].say(f"evaluating on {split}")
                tally = BadValueMonitor(self.program.data.max_bad_share)
                look = functools.partial(self._look, step, split, tally)
                outcomes = self.evaluator.evaluate(self.state.judged, split, look)
                for all_, outcome in zip(metrics, outcomes, strict=True):
                    all_ |= {f"{split}/{name}": value for name, value in outcome.figures().items()}
        for run, values in zip(self.runs, metrics, strict=True):
            run.write(step, values)
        return metrics

    def _look(self, step: int, split: str, tally: BadValueMonitor, host: HostBatch) -> None:
        """At a batch that is evaluated. Steps to come are not waited for, so only the last evaluation is cut short."""
        self.runs[0].note_errors(step, split, tally, host)
        if step == self.train.steps and jax.process_count() == 1:
            self._stop_if_asked(step)

    def _save(self, step: int, metrics: Sequence[dict[str, float] | None]) -> None:
        for run, state, each in zip(self.runs, self._states(), metrics, strict=True):
            run.save(step, state, each)


def _check_best(experiment: Experiment) -> None:
    """Raises UserError where the best checkpoint is asked for and no step but the last is both evaluated and saved."""
    metric, every = experiment.checkpoint.best_metric, experiment.checkpoint.every
    steps, evaluate_every = experiment.train.steps, experiment.train.evaluate_every
    if metric is not None and min(every, evaluate_every) < steps <= math.lcm(every, evaluate_every):
        raise UserError(
            f"checkpoint.best_metric={metric} needs steps that are both evaluated and saved, and with "
            f"train.evaluate_every={evaluate_every} and checkpoint.every={every} no step before the last is; "
            "set both to the same number, or one to a multiple of the other, below train.steps"
        )


def _check_memory(program: Program) -> None:
    """Raises UserError where what a step is given is more than a device has, before that is found out by compiling."""
    held, there = program.argument_bytes, _device_memory()
    if sum(held.values()) > there:
        parts = ", ".join(f"{name} {size / 2**30:.3g}" for name, size in held.items() if size)
        raise UserError(
            f"a step is given more than the {there / 2**30:.3g} GiB of a device: GiB of {parts}; lower model.width, a "
            "depth or train.batch_size, or split it over more devices by mesh.fsdp"
        )


def _device_memory() -> float:
    """Bytes that one device of this process has; simulated ones of a CPU share the machine's."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", float("inf"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
