"""The directory of one run: its owner, checkpoints, metrics, data errors, summary and report."""

import contextlib
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.buckets import is_remote
from mmjax.checkpoint.manager import FOLDER, Checkpoints, run_folder
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.data.batching.host_batch import BadValueMonitor, HostBatch, chain_digest
from mmjax.data.device_batches import rows_of
from mmjax.data.loader import Data, Loader
from mmjax.errors import Diverged, UserError
from mmjax.files import explained, read_json, step_of, write_atomic
from mmjax.formatting import count, duration
from mmjax.reports.examples import example_sections
from mmjax.reports.run import write_report
from mmjax.sharding.distributed import gather_lines, is_main_process
from mmjax.training.data_errors import DataErrorsLog
from mmjax.training.metrics import MetricsLog, parameters_digest, read_history, write_summary
from mmjax.training.state import TrainState
from mmjax.types import Metrics
from mmjax.writers import RunInfo

# The fingerprint of the examples of each split, or of each source's in a mixture, as the run began with them.
DATA_FILE = "data.json"
# A batch of the last split, with the model's predictions for it by output.
PredictedBatch = tuple[HostBatch, dict[str, dict[str, np.ndarray]]]


class RunDir:
    """The run directory of one experiment: resumes from it, and writes all files of the run."""

    def __init__(self, experiment: Experiment, sharding: NamedSharding):
        """Checks the request, and writes nothing. Raises UserError where it is not valid."""
        self.experiment, self.lead = experiment, is_main_process()
        self.run_dir = run_folder(experiment.run_dir)
        size = experiment.train.batch_size
        rows = rows_of(sharding, size)
        rows_of(sharding, size // experiment.train.accumulate)
        if self.lead:
            experiment_file.check_owner(experiment, self.run_dir)
            _check_checkpoints(self.run_dir)
        # Before the first step a directory may hold the tokenizers of a command that was corrected since.
        self.new = not experiment_file.has_begun(self.run_dir)
        self.data: Data = experiment.data.fit_tokenizers(experiment.data_dir, None if self.new else self.run_dir)
        # What is missing shows before anything is compiled.
        splits = self.data.source.splits
        opened = {split: self.data.open(experiment.data_dir, split) for split in splits}
        self.sizes = {split: len(records) for split, records in opened.items()}
        parts = {split: self.data.source.parts(records) for split, records in opened.items()}
        self.parts = dict.fromkeys(itertools.chain.from_iterable(parts.values()))
        if same := [name for name in self.parts if name in experiment.model.outputs]:
            raise UserError(
                f"data.source.sources.{same[0]} and model.outputs.{same[0]} share a name: rename one of them"
            )
        self.data_fingerprints = {
            f"{split}/{part}" if part else split: records.fingerprint
            for split, each in parts.items()
            for part, records in each.items()
        }
        if self.lead and not self.new:
            self._check_data()
        self.warnings = self.data.check_fields(experiment.data_dir)
        self.data = self.data.fit_packing(experiment.data_dir, size, experiment.train.steps)
        self.loader = Loader(self.data, experiment.data_dir, "train", size, seed=experiment.seed, rows=rows)
        self.loader.ids(experiment.train.steps - 1)  # a mixture may have too few examples
        self.bad_values = BadValueMonitor(experiment.data.max_bad_share)
        self.init_key, self.key = jax.random.split(jax.random.key(experiment.seed))
        self.digest, self.start, self.waited, self.retries = "", 0, 0.0, 0
        self.fills: list[dict[str, float]] = []  # of the packed features' rows, since the last log
        self.cut = 0

    def _check_data(self) -> None:
        """Raises UserError where a run would go on with other examples than it began with."""
        try:
            began = read_json(self.run_dir / DATA_FILE)
        except (OSError, ValueError):
            return
        for name, fingerprint in began.items() if isinstance(began, dict) else ():
            if self.data_fingerprints.get(name) != fingerprint:
                split, _, part = name.partition("/")
                of = f"data.source.sources.{part} in the split" if part else "the split"
                raise UserError(
                    f"the data of {of} {split} have changed since {self.run_dir} began: put the old ones back, "
                    "set another run_dir, or fresh=true to start from the beginning"
                )

    def print(self, line: str) -> None:
        """Prints a line on standard error, in the lead process only."""
        if self.lead:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def phase(self, name: str, show: Callable[[str], None] | None = None) -> Iterator[None]:
        """Shows that something slow starts and, where it took a second or more, how long it took.

        `show` shows a line in place of `print`, above a progress bar for example.
        """
        show = show or self.print
        show(name)
        start = time.perf_counter()
        yield
        if (seconds := time.perf_counter() - start) >= 1:
            show(f"{name} took {duration(seconds)}")

    def open(self, abstract: Any, stack: contextlib.ExitStack) -> TrainState | None:
        """Claims the directory until `stack` is closed. Returns the newest checkpoint's state if there is one.

        Nothing is written before: an invalid request must not take the directory from a valid one. Raises UserError
        where another process trains in it.
        """
        if self.lead:
            stack.enter_context(experiment_file.lock(self.run_dir))
            claimed = experiment_file.claim(self.experiment, self.run_dir, abstract.critics is not None)
            self.data.save(self.run_dir)
            write_atomic(self.run_dir / DATA_FILE, json.dumps(self.data_fingerprints, indent=2) + "\n")
        fingerprints = gather_lines(claimed if self.lead else [])
        self.checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    self.run_dir,
                    self.experiment.checkpoint,
                    fingerprints=fingerprints,
                    warn=self.print,
                )
            )
        )
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.model))
        state = None
        restored = self.checkpoints.restore(abstract)
        if restored is not None:
            state, extra, self.start = restored
            self.digest = extra["examples_digest"]
            self.print(f"resuming {self.run_dir} at step {self.start}")
        self.log = stack.enter_context(contextlib.closing(self._open_log()))
        logged = self.log.history() if self.lead else []
        lines = [json.dumps([line["step"], found]) for line in logged if (found := _evaluation(line))]
        self.evaluated: dict[int, dict[str, float]] = dict(map(json.loads, gather_lines(lines)))
        for step, metrics in self.evaluated.items():
            if self.experiment.checkpoint.best_metric in metrics:
                self.checkpoints.note(step, metrics)
        self.data_errors = stack.enter_context(
            contextlib.closing(DataErrorsLog(self.run_dir, self.start, warn=self.print, writer=self.lead))
        )
        return state

    def _open_log(self) -> MetricsLog:
        """metrics.jsonl and the writers that the experiment names."""
        config = json.loads(experiment_file.to_json(self.experiment))
        writers = self.experiment.train.writers.items() if self.lead else ()
        with explained(self.run_dir):
            opened = [writer.open(RunInfo(name, self.run_dir, self.start, config)) for name, writer in writers]
        return MetricsLog(self.run_dir, self.start, writers=opened, lead=self.lead)

    def record_batch(self, step: int, host: HostBatch) -> None:
        """Adds the examples of a step to the digest, and records what of them could not be read."""
        self.digest = chain_digest(self.digest, host.ids)
        self.record_errors(step, "train", self.bad_values, host)
        self.retries += host.retries
        self.cut += host.cut
        if host.fill:
            self.fills.append(host.fill)

    def record_errors(self, step: int, split: str, monitor: BadValueMonitor, host: HostBatch) -> None:
        """Records what of a batch could not be read. Raises UserError where that is too much."""
        self.data_errors.add(step, split, host.errors)
        monitor.add(host)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics of a step."""
        self.log.write(step, metrics)
        self.data_errors.flush()

    def write_steps(self, step: int, fetched: list[Metrics], more: Mapping[str, float]) -> None:
        """Logs averages over the steps up to `step`. Raises Diverged where too many in a row were not finite.

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
        if self.fills:
            for name in self.fills[0]:
                values[f"train/{name}_fill"] = sum(fill[name] for fill in self.fills) / len(self.fills)
            values["train/cut_sequences"], self.fills = self.cut, []
        read = self.loader.order.metrics(step * self.loader.step_examples)
        values |= {f"data/{name}": value for name, value in read.items()}
        if self.retries:  # of this session, since a bucket stalled or failed
            values["train/retried_reads"] = self.retries
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
        """Starts to save a checkpoint in the background."""
        self.data_errors.flush()  # a run that resumes here does not read those examples again
        extra = {"examples_digest": self.digest, "seconds": self.log.seconds}
        self.checkpoints.save(step, state, extra, metrics)

    def finish(self, state: TrainState, examples: PredictedBatch, metrics: Mapping[str, float]) -> Path | None:
        """Waits for the checkpoints, then writes summary and report. Returns the summary's path in the lead."""
        self.checkpoints.wait()
        if unreadable := self.data_errors.values:
            self.print(f"{unreadable:,} values of examples could not be read: see {self.data_errors.path}")
        summary = self._summary(state, metrics)
        path = write_summary(self.run_dir, **summary) if self.lead else None
        self._write_report(summary, examples)
        return path

    def report_failure(self, state: TrainState, examples: PredictedBatch, reason: str) -> None:
        """Writes the report of a run that cannot go on."""
        self._write_report(self._summary(state, {}), examples, stopped=reason)

    def _summary(self, state: TrainState, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The content of summary.json. All processes must call it."""
        return {
            "fingerprint": experiment_file.fingerprint(self.experiment),
            "step": int(state.step),
            "seconds": self.log.seconds,
            "metrics": metrics,
            "parameters_digest": parameters_digest(state.model),
            "examples_digest": self.digest,
        }

    def _write_report(self, summary: dict[str, Any], examples: PredictedBatch, stopped: str = "") -> None:
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
            summary,
            example_sections(self.data, *examples, target_features),
            facts={"parameters": count(self.parameters), "devices": devices},
            targets={output: self.data.features[name] for output, name in target_features.items()},
            sizes=self.sizes,
            sources=[*filter(None, self.parts)],
            stopped=stopped,
        )


def _check_checkpoints(run_dir: Path) -> None:
    """Raises UserError where the metrics show steps that were saved, and their checkpoints are gone.

    A run that was killed before its first checkpoint was written starts again from the beginning.
    """
    history, folder = read_history(run_dir), run_dir / FOLDER
    if not history or any(step_of(path.name.removeprefix("damaged-")) is not None for path in folder.glob("*")):
        return
    steps, every = history[-1]["step"], experiment_file.read(run_dir).checkpoint.every
    # Each save waits for the one before. The folder is made before the first step, but not in a bucket.
    lost = not folder.exists() and not is_remote(folder)
    saved = steps > 2 * every or (run_dir / "summary.json").exists() or lost
    if saved:
        raise UserError(
            f"{run_dir} has logged {steps} steps and no checkpoint to resume from: put its {FOLDER}/ back, or set "
            "fresh=true to start from the beginning"
        )


def _evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that a line of metrics.jsonl holds."""
    return {name: value for name, value in line.items() if name.startswith("validation/")}
