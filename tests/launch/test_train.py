"""`fresh=true`: a run directory is moved aside, and a run that was interrupted is not begun again by it."""

import pytest

from launch import command_line, train
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.errors import Preempted
from mmjax.training import loop


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs the command with a training that is interrupted at once; returns its exit code."""
    run_dir = tmp_path / "run"
    experiment_file.write(command_line.load_experiment("interactions"), run_dir)

    def interrupted(experiment):
        assert type(experiment) is Experiment
        raise Preempted(f"stopped with {run_dir.exists()}; the same command resumes")

    monkeypatch.setattr(loop, "train", interrupted)

    def run(*words):
        words = ["interactions", f"run_dir={run_dir}", f"data_dir={tmp_path}", *words]
        return command_line.main(train.train_as_asked, "", words, train.SUBJECTS)

    return run


def test_a_run_directory_is_resumed_by_default(go, tmp_path, capsys):
    assert go() == 75
    assert capsys.readouterr().err == "stopped with True; the same command resumes\n"
    assert not (tmp_path / "run.1").exists()


def test_fresh_moves_it_aside(go, tmp_path, capsys):
    assert go("fresh=true") == 75
    moved, interrupted = capsys.readouterr().err.splitlines()
    assert moved == f"moved {tmp_path / 'run'} to {tmp_path / 'run.1'}"
    assert interrupted == "stopped with False; the same command resumes (leave out fresh=true)"
    assert (tmp_path / "run.1" / "experiment.json").exists()


def test_fresh_leaves_a_run_that_is_training_alone(go, tmp_path, capsys):
    with experiment_file.lock(tmp_path / "run"):
        assert go("fresh=true") == 2
    assert capsys.readouterr().err.startswith("error: another process is training in ")
    assert (tmp_path / "run" / "experiment.json").exists()
    assert not (tmp_path / "run.1").exists()
