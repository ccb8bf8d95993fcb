"""The one training loop: restore -> (evaluate -> checkpoint -> batch -> step -> metrics)*."""

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.compilation import jit_once
from mmjax.data.loader import Data, HostBatch, Loader, Tally, chain
from mmjax.data.place import Feed, Placed, rows_of, shapes
from mmjax.errors import Diverged, Preempted
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.examples import show_examples
from mmjax.evaluation.report import write_report
from mmjax.model import Multimodal
from mmjax.profiling.flops import count_flops, peak_flops
from mmjax.sharding.distributed import any_process, barrier, is_lead
from mmjax.sharding.mesh import choose_rules
from mmjax.sharding.rules import Rules
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.data_errors import DataErrorsLog
from mmjax.training.initialize import Initialize, check_origin, initialize
from mmjax.training.metrics import MetricsLog, parameters_digest, write_summary
from mmjax.training.progress import Progress
from mmjax.training.state import TrainState, build_model, init_state
from mmjax.training.step import train_step
from mmjax.types import Metrics

if TYPE_CHECKING:
    from mmjax.config import Experiment


@chz.chz
class Train:
    """How long, in what portions, and how often something is looked at."""

    steps: int = chz.field(default=1000, doc="steps in all")
    batch_size: int = chz.field(default=64, doc="examples in a global batch")
    log_every: int = chz.field(default=20, doc="steps between logged figures", metadata={"operational": True})
    evaluate_every: int = chz.field(default=500, doc="steps between evaluations", metadata={"operational": True})
    accumulate: int = chz.field(default=1, doc="parts a batch is worked through in, to save memory")
    ema: float | None = chz.field(
        default=None, doc="decay of a moving average of the parameters, which is then evaluated"
    )
    stop_after_skipped: int = chz.field(default=10, doc="skipped steps in a row that end the run")
    initialize: Initialize | None = chz.field(default=None, doc="start from another run's parameters")

    @chz.validate
    def _positive(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "accumulate", "stop_after_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema} must lie between 0 and 1")


def train(experiment: "Experiment") -> Path | None:
    """Run an experiment to its end, from where its run directory stands.

    Returns the path of its summary, or None in a process that is not the lead. Raises UserError for what the user can
    mend, Preempted after a SIGTERM was answered with a checkpoint, and Diverged, when the report is written, where too
    many steps in a row were not finite.
    """
    mesh = experiment.mesh.build()
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        run = Run(experiment, choose_rules(experiment.rules, mesh), stack)
        try:
            return run.finish(run.loop())
        except Diverged as error:
            run.report_failure(str(error))
            raise


class Run:
    """A training in progress: what the loop's parts share."""

    def __init__(self, experiment: "Experiment", rules: Rules, stack: contextlib.ExitStack):
        from mmjax import config

        self.experiment, self.rules, self.lead = experiment, rules, is_lead()
        self.run_dir = Path(experiment.run_dir).expanduser()
        self.preempted = stack.enter_context(_heed_sigterm())
        self.sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        size = experiment.train.batch_size
        rows = rows_of(self.sharding, size)
        rows_of(self.sharding, size // experiment.train.accumulate)
        if self.lead:
            config.check_owner(experiment, self.run_dir)
        self.data: Data = experiment.data.bind(experiment.data_dir, self.run_dir)
        for split in self.data.source.splits:
            self.data.open(experiment.data_dir, split)  # what is missing shows before anything is compiled
        self.loader = Loader(self.data, experiment.data_dir, "train", size, seed=experiment.seed, rows=rows)
        self.evaluator = Evaluator(self.data, experiment.data_dir, size, sharding=self.sharding, rules=rules)
        self.tally = Tally(experiment.data.max_bad_share)
        self._plan()
        if experiment.train.initialize is not None and not (self.run_dir / config.FILE).exists():
            check_origin(self.abstract.model, experiment.train.initialize)

        # Nothing is written for a request that is wrong: it must not claim the directory from the one that is right.
        if self.lead:
            config.claim(experiment, self.run_dir)
            self.data.save(self.run_dir)
        barrier("claimed")
        self.checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(self.run_dir, experiment.checkpoint, warn=self._say))
        )
        state, extra = self._start()
        self.digest: str = extra.get("examples_digest", "")
        self.start = int(state.step)
        self.log = stack.enter_context(contextlib.closing(MetricsLog(self.run_dir, self.start, writer=self.lead)))
        self.data_errors = stack.enter_context(
            contextlib.closing(DataErrorsLog(self.run_dir, self.start, writer=self.lead))
        )
        self.progress = Progress(experiment.train.steps, self.start, examples_per_step=size, enabled=self.lead)
        stack.callback(self.progress.close)
        self.state, self.waited = state, 0.0

    def _say(self, line: str) -> None:
        if self.lead:
            print(line, file=sys.stderr, flush=True)

    def _plan(self) -> None:
        """The run's keys, how its state is made, and the shapes of that: what does not fit the mesh shows here."""
        train, model = self.experiment.train, self.experiment.model
        self.draw_key, self.key = jax.random.split(jax.random.key(self.experiment.seed))
        self.build = functools.partial(build_model, model=model, features=self.data.features, rules=self.rules)
        abstract_model = jax.eval_shape(self.build, self.draw_key)
        self.optimizer = self.experiment.optimizer.build(train.steps, abstract_model)
        self.begin = functools.partial(init_state, optimizer=self.optimizer, ema=train.ema is not None)
        self.abstract = jax.eval_shape(self.begin, abstract_model)

    def _start(self) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint's state and what was saved with it, or a fresh state."""
        restored = self.checkpoints.restore(self.abstract)
        if restored is not None:
            state, extra, step = restored
            self._say(f"resuming {self.run_dir} at step {step}")
            return state, extra
        origin = self.experiment.train.initialize
        if origin is None:
            return jit_once(lambda key: self.begin(self.build(key)))(self.draw_key), {}
        model = initialize(jit_once(self.build)(self.draw_key), origin, say=self._say)
        return jit_once(self.begin)(model), {}

    def loop(self) -> dict[str, float]:
        """All steps that are left. Returns the final metrics."""
        steps = self.experiment.train.steps
        if self.start < steps:
            self._train()
        return self._evaluate(steps, ("validation", "test"))

    def _train(self) -> None:
        train = self.experiment.train
        # Measured, on a CPU, before the loader takes a part of it.
        self.progress.peak = peak_flops(self.experiment.model.dtype)[0] * jax.device_count()
        pending: list[Metrics] = []
        evaluated: dict[str, float] = {}
        with Feed(self.loader, self.sharding, self.start, train.steps) as feed:
            compiled = self._compile()  # while the first batches are made
            for step in range(self.start, train.steps):
                if step > self.start:
                    evaluated = self._between_steps(step, evaluated)
                placed = self._next(feed, pending)
                self.state, metrics = compiled(self.state, placed.batch, self.key)
                self._account(step, placed)
                pending.append(metrics)
                done = step + 1
                if done % train.log_every == 0 or done in (self.start + 1, train.steps):
                    self._log(done, pending)
                    pending = []
                    self._stop_if_asked(done)
                elif jax.process_count() == 1:
                    self._stop_if_asked(done)

    def _compile(self) -> jax.stages.Compiled:
        """The training step. Counts the model's FLOPs in it, too: three forward passes' worth."""
        train = self.experiment.train
        batch = shapes(self.data.features, train.batch_size, self.sharding)
        forward = count_flops(lambda model, batch: model.loss(batch)[0], self.state.model, batch)
        self.progress.model_flops = 3 * forward
        step = functools.partial(
            train_step, optimizer=self.optimizer, rules=self.rules, accumulate=train.accumulate, ema=train.ema
        )
        return jax.jit(step, donate_argnums=0).lower(self.state, batch, self.key).compile()

    def _next(self, feed: Feed, pending: list[Metrics]) -> Placed:
        """The next batch. At most two steps are on their way.

        The wait for it counts if the devices had run out of work by its end.
        """
        if len(pending) > 1:
            jax.block_until_ready(pending[-2])
        placed = next(feed)
        if pending and pending[-1]["loss"].total.is_ready():
            self.waited += feed.last_wait
        return placed

    def _between_steps(self, step: int, evaluated: dict[str, float]) -> dict[str, float]:
        """What is due after `step` steps: an evaluation, then a checkpoint. Returns the newest evaluation."""
        if step % self.experiment.train.evaluate_every == 0:
            evaluated = self._evaluate(step, ("validation",))
        if step % self.experiment.checkpoint.every == 0:
            self._save(step, evaluated)
        return evaluated

    def _account(self, step: int, placed: Placed) -> None:
        """Remembers whose turn the step was, and what of it could not be read."""
        self.digest = chain(self.digest, placed.host.ids)
        self._note_errors(step, "train", self.tally, placed.host)

    def _note_errors(self, step: int, split: str, tally: Tally, host: HostBatch) -> None:
        self.data_errors.add(step, split, host.errors)
        tally.add(host)

    def _log(self, step: int, pending: list[Metrics]) -> None:
        """Writes the averages since the last line. Waits for the devices, once."""
        fetched = jax.device_get(pending)
        total = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), fetched)
        values = {f"train/{name}": float(average.value()) for name, average in total.items()}
        values["train/skipped"] = float(fetched[-1]["skipped"].value())
        del values["train/skipped_in_a_row"]
        rates = self.progress.update(step, values["train/loss"])
        values["train/learning_rate"] = float(self.experiment.optimizer.rate(self.experiment.train.steps)(step - 1))
        values["train/waited_seconds"] = self.waited
        if rates is not None:
            values |= rates.metrics()
        self.log.write(step, values)
        self.data_errors.flush()
        self._stop_if_diverged(step, fetched)

    def _stop_if_diverged(self, step: int, fetched: list[Metrics]) -> None:
        counts = [int(metrics["skipped_in_a_row"].value()) for metrics in fetched]
        most = max(counts)
        if most >= self.experiment.train.stop_after_skipped:
            last = step - len(counts) + 1 + counts.index(most)
            raise Diverged(
                f"the loss or the gradients of steps {last - most + 1} to {last} were not finite; lower "
                f"optimizer.learning_rate, or look at the curves in {self.run_dir / 'report.html'}"
            )

    def _stop_if_asked(self, step: int) -> None:
        """Answers a SIGTERM to any process with a checkpoint."""
        if step < self.experiment.train.steps and any_process(self.preempted()):
            self._save(step, {})
            self.checkpoints.wait()
            raise Preempted(f"stopped after step {step} with a checkpoint; the same command resumes")

    def _evaluate(self, step: int, splits: tuple[str, ...]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with self.progress.pause():
            for split in splits:
                if split in self.data.source.splits:
                    look = functools.partial(self._note_errors, step, split, Tally(self.data.max_bad_share))
                    metrics |= self.evaluator.evaluate(self._averaged(), split, look)
            self.log.write(step, metrics)
            self.data_errors.flush()
        return metrics

    def _averaged(self) -> Multimodal:
        """The model that is judged: the moving average where there is one."""
        return self.state.model if self.state.ema is None else self.state.ema

    def _save(self, step: int, metrics: dict[str, float]) -> None:
        self.data_errors.flush()  # a run that resumes here does not meet them again
        with self.progress.pause():
            extra = {"examples_digest": self.digest, "seconds": self.log.seconds}
            self.checkpoints.save(step, self.state, extra, metrics)

    def finish(self, metrics: dict[str, float]) -> Path | None:
        """Saves the last checkpoint and writes summary and report."""
        steps = self.experiment.train.steps
        if self.start < steps:
            self._save(steps, metrics)
        self.checkpoints.wait()
        outcome = self._outcome(metrics)
        path = write_summary(self.run_dir, **outcome) if self.lead else None
        self._write_report(outcome, {})
        return path

    def report_failure(self, reason: str) -> None:
        """Writes the report of a run that cannot go on."""
        self._write_report(self._outcome({}), {"stopped": reason})

    def _outcome(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What the summary holds. All processes must call it."""
        from mmjax import config

        return {
            "fingerprint": config.fingerprint(self.experiment),
            "step": int(self.state.step),
            "seconds": self.log.seconds,
            "metrics": metrics,
            "parameters_digest": parameters_digest(self.state.model),
            "examples_digest": self.digest,
        }

    def _write_report(self, outcome: dict[str, Any], facts: dict[str, str]) -> None:
        """Writes the report, with examples of the last split. All processes must call it."""
        from mmjax import config

        host, predictions = self.evaluator.first(self._averaged(), self.data.source.splits[-1])
        if not self.lead:
            return
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.model))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        write_report(
            self.run_dir,
            json.loads((self.run_dir / config.FILE).read_text()),
            self.log.history(),
            outcome,
            show_examples(self.data, host, predictions),
            facts={"parameters": f"{count:,}", "devices": devices, **facts},
        )


@contextlib.contextmanager
def _heed_sigterm() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM does not kill: the function given tells whether it came."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
