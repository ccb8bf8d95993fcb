"""Whose a run directory is, and what is refused there."""

import json
import shutil

import chz
import pytest

from launch.command_line import load_experiment
from mmjax.compilation import cache_compilations
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.errors import UserError
from mmjax.training import loop
from tests.ablation.small import TINY

STEPS = 6


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))
    mine = (f"train.steps={STEPS}", "train.log_every=1", "checkpoint.every=2")
    given = tuple(word.partition("=")[0] for word in mine)
    tiny = [word for word in TINY if not word.startswith(("seeds", "match", *given))]
    return resolve(load_experiment("interactions"), [*tiny, *mine, f"data_dir={folder}"])


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(chz.replace(experiment, run_dir=str(folder)))
    return folder


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def start(experiment, run_dir, monkeypatch):
    """Starts the training in `run_dir` and returns the step it would begin at."""

    def stop(group):
        raise UserError(f"begins at {group.start}")

    def start(**changes):
        monkeypatch.setattr(loop, "train_loop", stop)
        with pytest.raises(UserError) as error:
            loop.train(chz.replace(experiment, run_dir=str(run_dir), **changes))
        return str(error.value)

    return start


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(run_dir, step):
    """Removes what was logged after a step, and the summary."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    (run_dir / "summary.json").unlink()


def refusal(run_dir, step):
    return (
        f"{run_dir} has logged {step} steps and no checkpoint to resume from: put its checkpoints/ back, or set "
        "fresh=true to start from the beginning"
    )


def test_a_run_whose_checkpoints_are_gone_does_not_start_again(run_dir, start):
    (run_dir / "checkpoints").rename(run_dir / "moved")
    before = contents(run_dir)
    assert start() == refusal(run_dir, STEPS)
    assert contents(run_dir) == before
    cut(run_dir, 1)
    assert start() == refusal(run_dir, 1)
    (run_dir / "moved").rename(run_dir / "checkpoints")
    assert start() == f"begins at {STEPS}"


def test_a_run_whose_checkpoints_were_renamed_one_by_one_does_not_start_again(run_dir, start):
    for folder in (run_dir / "checkpoints").iterdir():
        folder.rename(folder.with_name(f"old-{folder.name}"))
    assert start() == refusal(run_dir, STEPS)
    cut(run_dir, 5)  # by then the checkpoint of step 4 was being written, which waits for that of step 2
    assert start() == refusal(run_dir, 5)


def test_a_run_that_was_killed_before_its_first_checkpoint_was_written_starts_again(run_dir, start):
    for folder in (run_dir / "checkpoints").iterdir():
        shutil.rmtree(folder)
    cut(run_dir, 3)
    assert start() == "begins at 0"


def test_a_run_owns_its_directory_from_its_first_step_on(experiment, run_dir, start):
    assert "belongs to another experiment (seed: 0 -> 1)" in start(seed=1)
    shutil.rmtree(run_dir)
    assert start() == "begins at 0"  # it compiled, and stopped before its first step
    assert start(seed=1) == "begins at 0"
    assert experiment_file.read(run_dir).seed == 1


def test_a_run_does_not_go_on_with_other_data(run_dir, start):
    path = run_dir / "data.json"
    began = json.loads(path.read_text())
    assert sorted(began) == ["test", "train", "validation"]
    path.write_text(json.dumps(began | {"train": "of others"}))
    assert start() == (
        f"the data of the split train have changed since {run_dir} began: put the old ones back, set another run_dir, "
        "or fresh=true to start from the beginning"
    )
    path.write_text(json.dumps(began))
    assert start() == f"begins at {STEPS}"
    path.unlink()  # a run from before this was kept
    assert start() == f"begins at {STEPS}"
