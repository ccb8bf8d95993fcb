"""Metric writers: where a run writes its metrics in addition to metrics.jsonl."""

import abc
import dataclasses
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import chz

from mmjax.buckets import UploadedFolder
from mmjax.errors import UserError
from mmjax.files import read_json, to_path, write_atomic

# TensorBoard's file is flushed to the disk this often; metrics.jsonl after every line.
TENSORBOARD_FLUSH_SECONDS = 10.0
# The most parameters that MLflow takes in one request, and the longest value.
MLFLOW_BATCH, MLFLOW_VALUE = 100, 6000


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The run that a metric writer writes for.

    `name` is the writer's key in `train.writers`, `step` where the run starts or resumes, `config` the experiment as
    nested dictionaries.
    """

    name: str
    run_dir: Path
    step: int
    config: Mapping[str, Any]


@runtime_checkable
class Writer(Protocol):
    """Writes the metrics of one run. Steps ascend; one may come twice, with other metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` steps."""

    def close(self) -> None:
        """Writes what is left and ends the writer."""


@chz.chz
class MetricWriter(abc.ABC):
    """Configuration of a metric writer, which is opened in the lead process.

    A run that resumes at a step opens its writers again with that step, and writes the metrics of later steps, which an
    earlier session may have written, once more: a writer replaces them or leaves them out (see `SentMetrics`).
    """

    @abc.abstractmethod
    def open(self, run: RunInfo) -> Writer:
        """The writer of a run. Raises UserError where it cannot be opened."""


@chz.chz
class TensorBoard(MetricWriter):
    """TensorBoard event files in the run directory's folder `tensorboard`."""

    def open(self, run: RunInfo) -> Writer:
        return _EventFile(run.run_dir / "tensorboard", run.step)


@chz.chz
class WandB(MetricWriter):
    """Weights & Biases: one W&B run for the run directory, which a resumed run continues."""

    project: str = chz.field(default="mmjax", doc="the W&B project")
    entity: str | None = chz.field(default=None, doc="the W&B user or team; None: your default")
    mode: Literal["online", "offline"] = chz.field(
        default="online", doc="offline: files in the run directory's folder wandb, for `wandb sync`"
    )

    def open(self, run: RunInfo) -> Writer:
        wandb = _import("wandb", self, run)
        sent = SentMetrics(run)
        if sent.id is None:
            sent.set_id(uuid.uuid4().hex[:12])
        try:
            session = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                id=sent.id,
                resume="allow",
                name=run.run_dir.name,
                dir=str(run.run_dir),
                config=dict(run.config),
                reinit="create_new",  # several runs may be open in one process
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise UserError(f"train.writers.{run.name}: W&B refuses the run: {_line(error)}") from error
        if session.url:
            print(f"W&B: {session.url}", file=sys.stderr, flush=True)
        # W&B's own step may not come twice, even after a resume: it counts rows, and the x-axis is our step.
        session.define_metric("*", step_metric="step")
        return _WandBRun(session, sent)


@chz.chz
class MLflow(MetricWriter):
    """MLflow: one MLflow run for the run directory, which a resumed run continues."""

    experiment: str = chz.field(default="mmjax", doc="the MLflow experiment")
    tracking_uri: str | None = chz.field(
        default=None, doc="an MLflow server or database; None: MLflow's own default, which MLFLOW_TRACKING_URI sets"
    )

    def open(self, run: RunInfo) -> Writer:
        mlflow = _import("mlflow", self, run)
        uri = self.tracking_uri or mlflow.get_tracking_uri()
        sent = SentMetrics(run)
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            if sent.id is None:
                experiment = client.get_experiment_by_name(self.experiment)
                id = client.create_experiment(self.experiment) if experiment is None else experiment.experiment_id
                sent.set_id(client.create_run(id, run_name=run.run_dir.name).info.run_id)
            else:
                client.update_run(sent.id, status="RUNNING")
            if run.step == 0:
                known = client.get_run(sent.id).data.params  # which MLflow does not let anyone change
                parameters = [
                    mlflow.entities.Param(key, str(value)[:MLFLOW_VALUE])
                    for key, value in _flat(run.config)
                    if key not in known
                ]
                for first in range(0, len(parameters), MLFLOW_BATCH):
                    client.log_batch(sent.id, params=parameters[first : first + MLFLOW_BATCH])
        except mlflow.exceptions.MlflowException as error:
            raise UserError(
                f"train.writers.{run.name}: MLflow could not start the run at {uri}: {_line(error)}"
            ) from error
        return _MLflowRun(mlflow, client, sent)


class SentMetrics:
    """Which metrics of a run a tracking service has received, so that a resumed run sends none twice.

    The file `writers/NAME.json` of the run directory keeps the run's ID at the service, the number of rows sent, the
    last step sent, and the names of its metrics. It is written before the metrics are sent: a process that is killed in
    between costs the service one step, which metrics.jsonl still has.
    """

    def __init__(self, run: RunInfo):
        """Raises UserError where the file is damaged."""
        self._path = to_path(run.run_dir) / "writers" / f"{run.name}.json"
        self.id: str | None = None
        self.rows, self._step, self._names = 0, -1, set[str]()
        if self._path.exists():
            try:
                kept = read_json(self._path)
                self.id, self.rows = kept["id"], int(kept["rows"])
                self._step, self._names = int(kept["step"]), set(kept["names"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._path} is damaged; remove it to start a new run at the service") from error

    def set_id(self, id: str) -> None:
        """Keeps the run's ID at the service."""
        self.id = id
        self._save()

    def new(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics that were not sent before; from now on they count as sent."""
        if step > self._step:
            self._step, self._names = step, set()
        new = {name: value for name, value in metrics.items() if step == self._step and name not in self._names}
        if new:
            self.rows += 1
            self._names |= new.keys()
            self._save()
        return new

    def _save(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        kept = {"id": self.id, "rows": self.rows, "step": self._step, "names": sorted(self._names)}
        write_atomic(self._path, json.dumps(kept))


class _EventFile:
    """TensorBoard scalars, written by the calling thread.

    tensorboardX's SummaryWriter writes from a thread of its own, and hangs once that thread met a full disk; its event
    writer underneath raises the error at once.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        resumed = directory.exists() and any(directory.iterdir())
        self._folder = UploadedFolder(directory)
        # A resumed session of the same second on the same host would otherwise write over the one before.
        name = str(self._folder.path / "events")
        self._writer = EventsWriter(name, filename_suffix=f".{os.getpid()}.{time.time_ns()}")
        if resumed:  # tells TensorBoard to forget what earlier files hold after this step
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, wall_time=time.time(), session_log=start))
        self._writer.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(Event(step=int(step), wall_time=time.time(), summary=Summary(value=scalars)))
        if time.monotonic() - self._flushed > TENSORBOARD_FLUSH_SECONDS:
            self._writer.flush()
            self._folder.upload()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()
        self._folder.close()


class _WandBRun:
    def __init__(self, session: Any, sent: SentMetrics):
        self._session, self._sent = session, sent

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if new := self._sent.new(step, metrics):
            self._session.log({"step": step, **new}, step=self._sent.rows)

    def close(self) -> None:
        self._session.finish()


class _MLflowRun:
    def __init__(self, mlflow: Any, client: Any, sent: SentMetrics):
        self._mlflow, self._client, self._sent = mlflow, client, sent

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = self._sent.new(step, metrics)
        sent = [self._mlflow.entities.Metric(name, value, now, step) for name, value in new.items()]
        try:
            self._client.log_batch(self._sent.id, metrics=sent)
        except self._mlflow.exceptions.MlflowException as error:  # a server that is away must not end a training
            print(f"MLflow does not have the metrics of step {step}: {_line(error)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._client.set_terminated(self._sent.id)


def _import(package: str, writer: MetricWriter, run: RunInfo) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"train.writers.{run.name}={type(writer).__name__} needs the package {package}: install it by "
            f"pip install 'mmjax[{package}]'"
        ) from error


def _flat(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a nested configuration by dotted key."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _flat(value, f"{key}.{name}" if key else name)
    else:
        yield key, config


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
