"""Metric writers: TensorBoard for real, the tracking services by a stand-in for their packages, a user's class."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from launch.command_line import load_experiment
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.errors import UserError
from mmjax.training.metrics import MetricsLog
from mmjax.writers import MLflow, RunInfo, TensorBoard, WandB
from tests.flags import flags

# A session that wrote up to step 30 and was killed, and one that resumes at step 20.
SESSIONS = (
    (0, [(10, {"loss": 1.0}), (20, {"loss": 2.0}), (20, {"accuracy": 0.5}), (30, {"loss": 3.0})]),
    (20, [(20, {"accuracy": 0.5}), (30, {"loss": 3.0}), (30, {"accuracy": 0.6}), (40, {"loss": 4.0})]),
)
SENT = [(10, {"loss": 1.0}), (20, {"loss": 2.0}), (20, {"accuracy": 0.5}), (30, {"loss": 3.0}), (30, {"accuracy": 0.6})]
SENT.append((40, {"loss": 4.0}))


def write_sessions(config, run_dir: Path) -> None:
    for start, metrics in SESSIONS:
        writer = config.open(RunInfo("mine", run_dir, start, {"class": "X", "seed": 0, "train": {"steps": 40}}))
        for step, values in metrics:
            writer.write(step, values)
        writer.close()


def test_tensorboard_sees_every_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps, factor in ((0, (10, 20, 30), 1), (20, (30, 40), 2)):
        log = MetricsLog(tmp_path, start, writers=[TensorBoard().open(RunInfo("tensorboard", tmp_path, start, {}))])
        for step in steps:
            log.write(step, {"train/loss": factor * step})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (10, 10),
        (20, 20),
        (30, 60),
        (40, 80),
    ]


@pytest.fixture
def wandb(monkeypatch):
    """The part of W&B's package that is used; `opened` has the arguments and the rows of every session."""
    module = ModuleType("wandb")
    module.opened = []
    module.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.Settings = lambda **settings: settings

    def init(**arguments):
        if arguments["project"] == "forbidden":
            raise module.errors.Error("permission\ndenied")
        session = SimpleNamespace(arguments=arguments, rows=[], steps=[], finished=False, url="https://there")
        session.define_metric = lambda name, step_metric: setattr(session, "axis", step_metric)
        session.log = lambda row, step: session.rows.append(row) or session.steps.append(step)
        session.finish = lambda: setattr(session, "finished", True)
        module.opened.append(session)
        return session

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_run_continues_its_wandb_run_and_sends_no_step_twice(wandb, tmp_path):
    write_sessions(WandB(project="ours", mode="offline"), tmp_path)
    first, second = wandb.opened
    assert first.rows + second.rows == [{"step": step, **values} for step, values in SENT]
    assert first.steps + second.steps == [1, 2, 3, 4, 5, 6]
    assert first.arguments["id"] == second.arguments["id"]
    assert (first.arguments["project"], first.arguments["mode"], first.arguments["resume"]) == (
        "ours",
        "offline",
        "allow",
    )
    assert first.arguments["dir"] == str(tmp_path)
    assert first.axis == "step"
    assert first.finished
    assert second.finished
    with pytest.raises(UserError, match=r"^train.writers.mine: W&B refuses the run: permission denied$"):
        WandB(project="forbidden").open(RunInfo("mine", tmp_path, 0, {}))


@pytest.fixture
def mlflow(monkeypatch):
    """The part of MLflow's package that is used; `runs` has the parameters and the metrics of every run."""
    module = ModuleType("mlflow")
    module.runs, module.uris = {}, []
    module.exceptions = SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))
    module.entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: (step, {key: value}), Param=lambda key, value: (key, value)
    )

    class Client:
        def __init__(self, tracking_uri):
            module.uris.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"id of {name}"

        def create_run(self, experiment, run_name):
            run = SimpleNamespace(experiment=experiment, name=run_name, metrics=[], params={}, status="RUNNING")
            module.runs[f"run {len(module.runs)}"] = run
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run {len(module.runs) - 1}"))

        def get_run(self, id):
            return SimpleNamespace(data=SimpleNamespace(params=module.runs[id].params))

        def update_run(self, id, status):
            module.runs[id].status = status

        def log_batch(self, id, metrics=(), params=()):
            if any(step == 99 for step, _ in metrics):
                raise module.exceptions.MlflowException("the server\nis away")
            assert module.runs[id].status == "RUNNING"
            module.runs[id].metrics += metrics
            module.runs[id].params |= dict(params)

        def set_terminated(self, id):
            module.runs[id].status = "FINISHED"

    module.MlflowClient = Client
    module.get_tracking_uri = lambda: "sqlite:///default.db"
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_a_resumed_run_continues_its_mlflow_run_and_sends_no_step_twice(mlflow, tmp_path, capsys):
    write_sessions(MLflow(experiment="ours"), tmp_path)
    (run,) = mlflow.runs.values()
    assert run.metrics == SENT
    assert run.params == {"class": "X", "seed": "0", "train.steps": "40"}
    assert (run.experiment, run.name, run.status) == ("id of ours", tmp_path.name, "FINISHED")
    assert set(mlflow.uris) == {"sqlite:///default.db"}
    writer = MLflow(tracking_uri="http://there").open(RunInfo("mine", tmp_path, 40, {}))
    assert mlflow.uris[-1] == "http://there"
    writer.write(99, {"loss": 1.0})
    assert capsys.readouterr().err == "MLflow does not have the metrics of step 99: the server is away\n"


@pytest.mark.parametrize(("config", "package"), [(WandB(), "wandb"), (MLflow(), "mlflow")])
def test_a_package_that_is_missing_is_named(config, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        config.open(RunInfo("mine", tmp_path, 0, {}))
    assert str(error.value) == (
        f"train.writers.mine={type(config).__name__} needs the package {package}: "
        f"install it by pip install 'mmjax[{package}]'"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "a", "rows": 1, "step": "x", "names": []}', '{"id": "a"}'])
def test_a_damaged_note_of_what_was_sent_is_named(wandb, tmp_path, content):
    (tmp_path / "writers").mkdir()
    (tmp_path / "writers" / "mine.json").write_text(content)
    with pytest.raises(UserError, match=r"writers/mine.json is damaged; remove it to start a new run"):
        WandB().open(RunInfo("mine", tmp_path, 0, {}))


def test_writers_are_chosen_by_key_and_do_not_decide_the_result():
    experiment = load_experiment("interactions")
    assert experiment.train.writers == {"tensorboard": TensorBoard()}
    words = ["train.writers.tensorboard=None", "train.writers.wandb=WandB", "train.writers.wandb.project=ours"]
    other = resolve(experiment, words)
    assert other.train.writers == {"wandb": WandB(project="ours")}
    assert experiment_file.fingerprint(other) == experiment_file.fingerprint(experiment)
    assert experiment_file.from_json(experiment_file.to_json(other)) == other


def test_a_class_of_ones_own_writes_what_a_run_logs(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "adding.md").read_text()
    [code] = re.findall(r"## A metric writer\n.*?```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_writers.py").write_text(code)
    words = ("modules=my_writers", "train.writers.mine=Lines", "train.writers.tensorboard=None", "train.steps=2")
    tiny = ("model.width=8", "data.source.train=64", "data.source.validation=8", "data.source.test=8")
    tiny = (*tiny, "train.batch_size=8", "train.log_every=1", "data_dir=data", "run_dir=run")
    command = [sys.executable, "-m", "launch.train", "interactions", *words, *tiny]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(1), "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line.split() for line in (tmp_path / "run" / "lines.txt").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == [1, 2, 2]  # the last step, and its evaluation
    assert {name for line in lines for name in line[1:]} == {name for line in history for name in line} - {
        "step",
        "seconds",
    }
    assert not (tmp_path / "run" / "tensorboard").exists()
