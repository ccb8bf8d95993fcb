"""One run directory: who it belongs to, what it reads, saves, logs and reports."""

import contextlib
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.checkpoint.manager import Checkpoints
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import rows_of
from mmjax.data.loader import BadValueMonitor, Data, HostBatch, Loader, chain
from mmjax.errors import Diverged
from mmjax.files import local_path, locked
from mmjax.reports.examples import show_examples
from mmjax.reports.run import write_report
from mmjax.sharding.distributed import barrier, gather_lines, is_lead
from mmjax.training.data_errors import DataErrorsLog
from mmjax.training.metrics import MetricsLog, parameters_digest, write_summary
from mmjax.training.state import TrainState
from mmjax.types import Metrics

# A batch of the last split, and what the model makes of it.
Looks = tuple[HostBatch, dict[str, dict[str, np.ndarray]]]


class RunDir:
    """What a run has on disk, from its claim on a directory to its report."""

    def __init__(self, experiment: Experiment, sharding: NamedSharding):
        """Looks whether the request is right; writes nothing. Raises UserError where it is not."""
        self.experiment, self.lead = experiment, is_lead()
        self.run_dir = local_path(experiment.run_dir)
        size = experiment.train.batch_size
        rows = rows_of(sharding, size)
        rows_of(sharding, size // experiment.train.accumulate)
        if self.lead:
            experiment_file.check_owner(experiment, self.run_dir)
        # Before the first step a directory may hold the tokenizers of a command that was corrected since.
        self.new = not experiment_file.has_begun(self.run_dir)
        self.data: Data = experiment.data.fit_tokenizers(experiment.data_dir, None if self.new else self.run_dir)
        for split in self.data.source.splits:
            self.data.open(experiment.data_dir, split)  # what is missing shows before anything is compiled
        self.data.check_fields(experiment.data_dir)
        self.loader = Loader(self.data, experiment.data_dir, "train", size, seed=experiment.seed, rows=rows)
        self.tally = BadValueMonitor(experiment.data.max_bad_share)
        self.draw_key, self.key = jax.random.split(jax.random.key(experiment.seed))
        self.digest, self.start, self.waited = "", 0, 0.0

    def say(self, line: str) -> None:
        """Tells the user, once however many processes there are."""
        if self.lead:
            print(line, file=sys.stderr, flush=True)

    def open(self, abstract: Any, stack: contextlib.ExitStack) -> TrainState | None:
        """Claims the directory, for as long as `stack` is open. Returns the newest checkpoint's state if there is one.

        Before, nothing must have been written: a request that is wrong must not claim the directory from the one that
        is right. Raises UserError where another process trains in it.
        """
        if self.lead:
            taken = f"another process is training in {self.run_dir}; wait until it ends, or set another run_dir"
            stack.enter_context(locked(self.run_dir / ".lock", taken))
            experiment_file.claim(self.experiment, self.run_dir)
            self.data.save(self.run_dir)
        barrier("claimed")
        self.checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    self.run_dir,
                    self.experiment.checkpoint,
                    fingerprint=experiment_file.fingerprint(self.experiment),
                    warn=self.say,
                )
            )
        )
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.model))
        state = None
        restored = self.checkpoints.restore(abstract)
        if restored is not None:
            state, extra, self.start = restored
            self.digest = extra["examples_digest"]
            self.say(f"resuming {self.run_dir} at step {self.start}")
        self.log = stack.enter_context(contextlib.closing(MetricsLog(self.run_dir, self.start, writer=self.lead)))
        logged = self.log.history() if self.lead else []
        lines = [json.dumps([line["step"], found]) for line in logged if (found := _evaluation(line))]
        self.evaluated: dict[int, dict[str, float]] = dict(map(json.loads, gather_lines(lines)))
        for step, metrics in self.evaluated.items():
            if self.experiment.checkpoint.best_metric in metrics:
                self.checkpoints.note(step, metrics)
        self.data_errors = stack.enter_context(
            contextlib.closing(DataErrorsLog(self.run_dir, self.start, warn=self.say, writer=self.lead))
        )
        return state

    def account(self, step: int, host: HostBatch) -> None:
        """Remembers whose turn the step was, and what of it could not be read."""
        self.digest = chain(self.digest, host.ids)
        self.note_errors(step, "train", self.tally, host)

    def note_errors(self, step: int, split: str, tally: BadValueMonitor, host: HostBatch) -> None:
        """Remembers what of a batch could not be read."""
        self.data_errors.add(step, split, host.errors)
        tally.add(host)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs figures of a step."""
        self.log.write(step, metrics)
        self.data_errors.flush()

    def write_steps(self, step: int, fetched: list[Metrics], more: Mapping[str, float]) -> None:
        """Logs the averages over the steps up to `step`, and more. Raises Diverged where too many were not finite.

        Skipped steps are left out of the averages, and counted in `train/skipped`, unless there were no others.
        """
        good = [metrics for metrics in fetched if metrics["skipped_in_a_row"].figures("")[""] == 0]
        total = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), good or fetched)
        values: dict[str, float] = {}
        for name, metric in total.items():
            values |= metric.figures(f"train/{name}")
        values |= fetched[-1]["skipped"].figures("train/skipped")
        del values["train/skipped_in_a_row"]
        values["train/learning_rate"] = float(self.experiment.optimizer.rate(self.experiment.train.steps)(step - 1))
        values["train/waited_seconds"] = self.waited
        self.write(step, {**values, **more})
        self._stop_if_diverged(step, fetched)

    def _stop_if_diverged(self, step: int, fetched: list[Metrics]) -> None:
        counts = [round(metrics["skipped_in_a_row"].figures("")[""]) for metrics in fetched]
        most = max(counts)
        if most >= self.experiment.train.stop_after_skipped:
            last = step - len(counts) + 1 + counts.index(most)
            raise Diverged(
                f"the loss or the gradients of steps {last - most + 1} to {last} were not finite; lower "
                f"optimizer.learning_rate, or look at the curves in {self.run_dir / 'report.html'}"
            )

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        """Begins to save a checkpoint."""
        self.data_errors.flush()  # a run that resumes here does not meet them again
        extra = {"examples_digest": self.digest, "seconds": self.log.seconds}
        self.checkpoints.save(step, state, extra, metrics)

    def finish(self, state: TrainState, looks: Looks, metrics: Mapping[str, float]) -> Path | None:
        """Writes summary and report when checkpoints are written. Returns the summary's path in the lead process."""
        self.checkpoints.wait()
        outcome = self._outcome(state, metrics)
        path = write_summary(self.run_dir, **outcome) if self.lead else None
        self._write_report(outcome, looks, {})
        return path

    def report_failure(self, state: TrainState, looks: Looks, reason: str) -> None:
        """Writes the report of a run that cannot go on."""
        self._write_report(self._outcome(state, {}), looks, {"stopped": reason})

    def _outcome(self, state: TrainState, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What the summary holds. All processes must call it."""
        return {
            "fingerprint": experiment_file.fingerprint(self.experiment),
            "step": int(state.step),
            "seconds": self.log.seconds,
            "metrics": metrics,
            "parameters_digest": parameters_digest(state.model),
            "examples_digest": self.digest,
        }

    def _write_report(self, outcome: dict[str, Any], looks: Looks, facts: dict[str, str]) -> None:
        if not self.lead:
            return
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        outputs = self.experiment.model.outputs.items()
        target_features = {
            name: output.target_feature
            for name, output in outputs
            if output is not None and output.target_feature is not None
        }
        write_report(
            self.run_dir,
            json.loads((self.run_dir / experiment_file.FILE).read_text()),
            self.log.history(),
            outcome,
            show_examples(self.data, *looks, target_features),
            facts={"parameters": f"{self.parameters:,}", "devices": devices, **facts},
        )


def _evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line of metrics.jsonl says of an evaluation."""
    return {name: value for name, value in line.items() if name.startswith("validation/")}
