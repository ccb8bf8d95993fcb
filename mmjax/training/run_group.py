"""Runs that differ only in their seed, trained together under one program."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from mmjax.compilation import jit_once
from mmjax.data.batching.host_batch import BadValueMonitor, HostBatch
from mmjax.data.device_batches import DeviceBatch, DevicePrefetcher
from mmjax.errors import Preempted, UserError
from mmjax.hardware.flops import peak_flops
from mmjax.sharding.distributed import any_process
from mmjax.signals import end_at_once
from mmjax.training.progress import Progress
from mmjax.training.run_dir import RunDir
from mmjax.training.state import TrainState
from mmjax.training.train_program import TrainProgram
from mmjax.types import Metrics
from mmjax.vmap_runs import stack, unstack

# The metrics of an evaluation, for each run of a group.
RunMetrics = list[dict[str, float]]


class RunGroup:
    """Runs at the same step that differ only in seed and run directory; the loop sees one run.

    Their states are stacked (see `mmjax.vmap_runs`), and one compiled step advances all of them.
    """

    def __init__(
        self, program: TrainProgram, runs: list[RunDir], states: list[TrainState | None], preempted: Callable[[], bool]
    ):
        """`states` are restored ones, or None for a new run; `preempted` tells whether to stop."""
        self.program, self.runs, self.experiment = program, runs, program.experiment
        self.start, self.steps = runs[0].start, program.experiment.train.steps
        self._preempted = preempted
        new = any(state is None for state in states)
        with runs[0].phase("initializing the model") if new else contextlib.nullcontext():
            given = zip(runs, states, strict=True)
            begun = [program.init_state(run) if state is None else state for run, state in given]
            self.state = begun[0] if len(runs) == 1 else jit_once(stack)(begun)
        self._keys = stack([run.key for run in runs])
        self._evaluator = program.evaluator(len(runs))
        self._evaluated_splits: set[str] = set()
        self._pending: list[Metrics] = []  # of the steps since the last log, still on the devices
        self._first_batch: list[DeviceBatch] | None = None
        self._progress: Progress | None = None

    @functools.cached_property
    def _compiled(self) -> jax.stages.Compiled:
        with self.runs[0].phase("compiling the step"):
            return self.program.compile_step(self.state, self._keys, len(self.runs))

    @property
    def _peak_bytes(self) -> int:
        """The memory that a step needs on each device, as the compiler reports it; 0 where it reports none."""
        memory = self._compiled.memory_analysis()
        if memory is None:
            return 0
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return total - memory.alias_size_in_bytes

    @property
    def fits(self) -> bool:
        """Whether a step fits into the memory of the devices, with some to spare."""
        return self.start == self.steps or self._peak_bytes < 0.8 * device_memory()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A context in which to train: the step is compiled and batches are prefetched, if steps are left."""
        if self.start == self.steps:
            yield
            return
        # Measured, on a CPU, before the loaders take a part of it.
        peak = peak_flops(self.experiment.model.dtype)[0] * jax.device_count()
        with contextlib.ExitStack() as resources:
            with end_at_once():
                self._prefetchers = [
                    resources.enter_context(DevicePrefetcher(run.loader, self.program.sharding, self.start, self.steps))
                    for run in self.runs
                ]
                _ = self._compiled  # while the first batches are made
                self._progress = Progress(
                    self.steps,
                    self.start,
                    examples_per_step=self.experiment.train.batch_size * len(self.runs),
                    model_flops=self.program.model_flops * len(self.runs),
                    peak=peak,
                    enabled=self.runs[0].lead,
                )
                resources.callback(self._progress.close)
                self._first_batch = [next(prefetcher) for prefetcher in self._prefetchers]
            yield

    @property
    def stopped_before_evaluation(self) -> bool:
        """Whether the previous session stopped after the step it saved, before the evaluation that was due."""
        due = self.start > 0 and self.start % self.experiment.train.evaluate_every == 0
        return due and any(self.start not in run.evaluated for run in self.runs)

    def evaluate(self, step: int, *splits: str) -> RunMetrics:
        """Evaluates the state after `step` steps on the splits that the data have; logs the metrics."""
        metrics: RunMetrics = [{} for _ in self.runs]
        for split in splits:
            if split not in self.program.data.source.splits:
                continue
            # The first evaluation compiles, and the last one is waited for; those between would only fill the screen.
            shown = split not in self._evaluated_splits or step == self.steps
            self._evaluated_splits.add(split)
            on_batch = functools.partial(
                self._on_evaluated, step, split, BadValueMonitor(self.program.data.max_bad_share)
            )
            with self._pause(), self._phase(f"evaluating on {split}") if shown else contextlib.nullcontext():
                results = self._evaluator.evaluate(self.state.eval_model, split, on_batch)
            for of_run, result in zip(metrics, results, strict=True):
                figures = result.figures() | result.figures_of_parts(self.program.data.source.part_of)
                of_run |= {f"{split}/{name}": value for name, value in figures.items()}
        for run, of_run in zip(self.runs, metrics, strict=True):
            run.write(step, of_run)
        return metrics

    def _on_evaluated(self, step: int, split: str, monitor: BadValueMonitor, host: HostBatch) -> None:
        """Records what could not be read of an evaluated batch. Only the last evaluation can be cut short."""
        self.runs[0].record_errors(step, split, monitor, host)
        if step == self.steps and jax.process_count() == 1:
            self.stop_if_asked(step)

    def save(self, step: int, metrics: Sequence[Mapping[str, float] | None] | None = None) -> None:
        """Starts to save checkpoints, with the metrics of an evaluation of this step if there was one."""
        each = metrics or [{}] * len(self.runs)
        with self._pause():
            for run, state, of_run in zip(self.runs, self._states(), each, strict=True):
                run.save(step, state, of_run)

    def next_batch(self) -> list[DeviceBatch]:
        """The next batch of every run. At most two steps are in flight.

        The time spent waiting is counted where the devices had run out of work by its end.
        """
        if self._first_batch is not None:
            batches, self._first_batch = self._first_batch, None
            return batches
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2])
        batches = [next(prefetcher) for prefetcher in self._prefetchers]
        if self._pending and jax.tree.leaves(self._pending[-1]["loss"])[0].is_ready():
            for run, prefetcher in zip(self.runs, self._prefetchers, strict=True):
                run.waited += prefetcher.last_wait
        return batches

    def train_step(self, step: int, batches: list[DeviceBatch]) -> None:
        """Advances every run by step number `step`, asynchronously."""
        self.state, metrics = self._compiled(self.state, [each.batch for each in batches], self._keys)
        for run, batch in zip(self.runs, batches, strict=True):
            run.record_batch(step, batch.host)
        self._pending.append(metrics)

    def log(self, step: int) -> None:
        """Writes the averages since the last log. Waits for the devices, once."""
        fetched = [unstack(metrics, len(self.runs)) for metrics in jax.device_get(self._pending)]
        self._pending = []
        losses = [metrics["loss"].figures("")[""] for metrics in fetched[-1]]
        assert self._progress is not None
        rates = self._progress.update(step, sum(losses) / len(losses))
        more = {} if rates is None else rates.metrics()
        if step == self.start + 1:
            more["train/peak_bytes"] = self._peak_bytes / len(self.runs)
        for run, metrics in zip(self.runs, zip(*fetched, strict=True), strict=True):
            run.write_steps(step, list(metrics), more)

    def stop_if_asked(self, step: int) -> None:
        """Answers a SIGTERM or a Ctrl-C to any process with a checkpoint. Raises Preempted."""
        if any_process(self._preempted()):
            is_due = step % self.experiment.checkpoint.every == 0 or step == self.steps
            self.save(step, [{} if is_due else None] * len(self.runs))
            for run in self.runs:
                run.checkpoints.wait()
            raise Preempted(f"stopped after step {step} with a checkpoint; the same command resumes")

    def finish(self, metrics: RunMetrics) -> list[Path | None]:
        """Saves the last checkpoints and writes summaries and reports. Returns the summaries' paths."""
        self.save(self.steps, metrics)
        final = iter(metrics)
        return self._report(lambda run, state, examples: run.finish(state, examples, next(final)))

    def report_failure(self, reason: str) -> None:
        """Writes the report of runs that cannot go on."""
        self._report(lambda run, state, examples: run.report_failure(state, examples, reason))

    def _report(self, function: Callable) -> list:
        """`function` of every run, its state, and a batch with its predictions. All processes must call it."""
        host, *predictions = self._evaluator.first(self.state.eval_model, self.program.data.source.splits[-1])
        each = zip(self.runs, self._states(), predictions, strict=True)
        return [function(run, state, (host, predicted)) for run, state, predicted in each]

    def _states(self) -> list[TrainState]:
        return [self.state] if len(self.runs) == 1 else self._unstack(self.state)

    @functools.cached_property
    def _unstack(self) -> Callable[[TrainState], list[TrainState]]:
        return jit_once(functools.partial(unstack, count=len(self.runs)))

    def _pause(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._progress is None else self._progress.pause()

    def _phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self.runs[0].phase(name, None if self._progress is None else self._progress.message)


def groups_that_fit(
    program: TrainProgram, runs: list[RunDir], states: list[TrainState | None], preempted: Callable[[], bool]
) -> Iterator[RunGroup]:
    """Groups of runs at the same step, as many in each as fit into the devices' memory."""
    starts = [run.start for run in runs]
    order = sorted(range(len(runs)), key=starts.__getitem__)
    waiting = [list(group) for _, group in itertools.groupby(order, starts.__getitem__)]
    while waiting:
        indices = waiting.pop(0)
        with end_at_once():
            group = RunGroup(
                program, [runs[index] for index in indices], [states[index] for index in indices], preempted
            )
            fits = len(indices) == 1 or group.fits
        if fits:
            yield group
        else:
            half = (len(indices) + 1) // 2
            waiting = [indices[:half], indices[half:], *waiting]


def check_memory(program: TrainProgram) -> None:
    """Raises UserError where the arguments of a step alone need more memory than a device has."""
    needed, available = program.argument_bytes, device_memory()
    if sum(needed.values()) > available:
        parts = ", ".join(f"{name} {size / 2**30:.3g}" for name, size in needed.items() if size)
        raise UserError(
            f"the arguments of a step need more than the {available / 2**30:.3g} GiB of a device: GiB of {parts}; "
            "lower model.width, a depth or train.batch_size, or split it over more devices by mesh.fsdp"
        )


def device_memory() -> float:
    """The bytes of memory of one device of this process; simulated devices of a CPU share the machine's."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", float("inf"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
