"""A run whose `train.steps` is raised ends as the run that had asked for so many at once."""

import json
import shutil

import pytest

from launch.command_line import load_experiment
from mmjax.compilation import cache_compilations
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.errors import UserError
from mmjax.training import loop
from tests.ablation.small import TINY

WORDS = (
    *(word for word in TINY if not word.startswith(("seeds", "match", "train.steps"))),
    *("model.dropout=0.1", "train.ema=0.9"),
)
CONSTANT = ("optimizer.schedule=Constant", "optimizer.schedule.warmup=2", "optimizer.schedule.cooldown=0.25")
SUMMARY = ("fingerprint", "step", "metrics", "parameters_digest", "examples_digest")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))  # the same programs are run again and again

    def run(run_dir, steps, *words, schedule=CONSTANT):
        words = (*WORDS, *schedule, f"data_dir={folder}", f"run_dir={run_dir}", f"train.steps={steps}", *words)
        loop.train(resolve(load_experiment("interactions"), words))
        summary = json.loads((run_dir / "summary.json").read_text())
        return {name: summary[name] for name in SUMMARY}

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """Twelve steps at once."""
    return train(tmp_path_factory.mktemp("whole"), 12)


def losses(run_dir):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def test_a_finished_run_is_extended_from_before_its_cooldown(train, whole, tmp_path, capsys):
    """Checkpoints are at steps 3, 6 and 8, and the cooldown begins at 6."""
    short = train(tmp_path, 8)
    assert short["step"] == 8
    capsys.readouterr()
    assert train(tmp_path, 12) == whole
    said = capsys.readouterr().err
    assert f"extending {tmp_path} to 12 steps from step 6; the shorter run" in said
    assert f"resuming {tmp_path} at step 6" in said
    assert sorted(losses(tmp_path)) == [1, 2, 4, 6, 7, 8, 10, 12]
    assert experiment_file.read(tmp_path).train.steps == 12
    report = (tmp_path / "report.html").read_text()
    assert whole["parameters_digest"] in report or whole["fingerprint"] in report

    # The shorter run is whole where it is kept.
    kept = tmp_path / "shorter.1"
    assert json.loads((kept / "summary.json").read_text())["parameters_digest"] == short["parameters_digest"]
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["8"]

    with pytest.raises(UserError, match=r"train.steps=8 is fewer than the 12"):
        train(tmp_path, 8)


def test_rates_of_a_longer_run_are_taken_on_only_when_asked_for(train, whole, tmp_path):
    train(tmp_path, 8)
    for step in (3, 6):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"set train.replan=true to go on from step 8"):
        train(tmp_path, 12)
    replanned = train(tmp_path, 12, "train.replan=true")
    assert replanned["step"] == 12
    assert replanned["examples_digest"] == whole["examples_digest"]
    assert replanned["parameters_digest"] != whole["parameters_digest"]  # its steps 7 and 8 had the lower rates
    # The same command again trains nothing.
    assert train(tmp_path, 12, "train.replan=true") == replanned
