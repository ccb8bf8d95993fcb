"""Checkpoints of one run: on any number of devices, all of them, with every suite, and against each other."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from launch import command_line, evaluate, export
from launch.train import train
from tests.system.conftest import ROOT, TINY, command, environment

STEPS = (2, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    tiny = [word for word in TINY if not word.startswith("checkpoint.")]
    words = [*tiny, f"run_dir={folder / 'run'}", f"data_dir={folder}", "train.steps=4", "checkpoint.every=2"]
    train(command_line.resolve(command_line.load_experiment("scenes"), words))
    return folder / "run"


def read(run, step=4):
    return json.loads((run / "evaluations" / f"{step}.json").read_text())


@pytest.mark.slow
def test_numbers_are_the_same_on_any_number_of_devices(run):
    """Of seven examples, which no number of devices but one divides; compiled as users compile."""
    found = []
    for devices in (1, 2, 8):
        words = command("evaluate", run, "suite=standard,slices")
        xla = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        subprocess.run(words, cwd=ROOT, env=environment(devices) | xla, check=True)
        found.append(read(run)["metrics"])
        shutil.rmtree(run / "evaluations")
    assert len(found[0]) > 30
    assert found[0] == found[1] == found[2]
    assert found[0]["test/count/accuracy"]["examples"] == 7


def test_all_steps_are_evaluated(run, capsys):
    assert evaluate.main([str(run), "step=all", "suite=standard"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{run / 'evaluations' / '4.json'}\n"
    first, second = captured.err.split("[2/2] step 4\n")
    assert first.startswith("[1/2] step 2\nstep 2: standard\n")
    shown = read(run)["metrics"]["test/count/accuracy"]
    assert re.search(rf"^  test/count/accuracy +{shown['value']:.4g}  \[.*\]  of 7 examples$", second, re.MULTILINE)
    assert [read(run, step)["step"] for step in STEPS] == [*STEPS]
    page = (run / "evaluations" / "report.html").read_text()
    assert "<h2>Curves</h2>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_steps_are_compared_on_the_same_examples(run, tmp_path, capsys):
    words = ["compare", f"{run}@2", str(run), f"out={tmp_path / 'against'}"]
    assert evaluate.main(words) == 0
    path = tmp_path / "against" / "comparison.json"
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n"
    assert re.search("(is better in|no significant difference in) .*count/accuracy", captured.err)
    whole = json.loads(path.read_text())
    assert whole["steps"] == {"run@2": 2, "run@4": 4}
    assert whole["first"] == "run@2"
    assert whole["examples"] == 7
    compared = whole["against"]["run@4"]
    for step in STEPS:
        assert evaluate.main([str(run), "suite=standard", f"step={step}"]) == 0
    first, second = (read(run, step)["metrics"] for step in STEPS)
    assert "count/log_loss" not in compared  # it is count/loss
    for name in ("count/accuracy", "count/loss", "shape/loss", "loss"):
        assert compared[name]["first"] == pytest.approx(first[f"test/{name}"]["value"], rel=1e-9)
        assert compared[name]["second"] == pytest.approx(second[f"test/{name}"]["value"], rel=1e-9)
        assert compared[name]["value"] == pytest.approx(compared[name]["first"] - compared[name]["second"], abs=1e-12)
        assert compared[name]["low"] <= compared[name]["value"] + 1e-12
        assert 0 < compared[name]["p_value"] <= compared[name]["adjusted_p_value"] <= 1
    page = (tmp_path / "against" / "report.html").read_text()
    assert "neither is right" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_an_export_is_evaluated_as_its_run_is(run, tmp_path, capsys):
    out = tmp_path / "export"
    assert export.main([str(run), f"out={out}", "format=safetensors", "step=2"]) == 0
    assert evaluate.main([str(run), "suite=standard", "step=2"]) == 0
    assert evaluate.main([str(out), "suite=standard", "watch=true"]) == 0
    assert read(out, 2)["metrics"] == read(run, 2)["metrics"]
    assert evaluate.main([str(out), "suite=standard", "step=all"]) == 0
    assert evaluate.main([str(out), "suite=standard", "step=4"]) == 2
    assert "is an export of step 2, and has no step 4" in capsys.readouterr().err
    assert evaluate.main(["compare", f"{run}@2", str(out), f"out={tmp_path / 'against'}"]) == 0
    (compared,) = json.loads((tmp_path / "against/comparison.json").read_text())["against"].values()
    assert {each["value"] for each in compared.values()} == {0}


def test_a_run_is_no_different_from_itself(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main(["compare", str(run), str(copy), f"out={tmp_path}"]) == 0
    whole = json.loads((tmp_path / "comparison.json").read_text())
    assert whole["steps"] == {"run@4": 4, f"{copy}@4": 4}
    (compared,) = whole["against"].values()
    assert {each["value"] for each in compared.values()} == {0}
    assert {each["p_value"] for each in compared.values()} == {1}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no run is named.*"),
        (["RUN", "RUN"], "RUN is named twice; name another run, or another step of it as R.N@STEP"),
        (["RUN", "RUN@4"], "RUN@4 is named twice, at step 4; say which steps as R.N@STEP"),
        (["RUN"], "compare needs two run directories or more, and got RUN alone"),
        (["RUN", "nowhere"], "nowhere is not a run directory: .*"),
        (["RUN", "RUN@3"], "there is no whole checkpoint of step 3 in .*; those there: 2, 4"),
        (["RUN", "RUN@x"], "RUN@x: expected a checkpoint's step after @, as in R.N@STEP"),
        (["RUN", "RUN", "spilt=test"], "unknown key spilt; the nearest is split; .*"),
    ],
)
def test_a_wrong_comparison_is_one_line(words, line, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where comparisons go
    assert evaluate.main(["compare", *(word.replace("RUN", str(run)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: {line}".replace("RUN", str(run)), captured.err.splitlines()[-1]), captured.err


def test_damaged_and_foreign_checkpoints_are_one_line(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "half", ignore=shutil.ignore_patterns("evaluations"))
    (copy / "checkpoints" / "4" / "digests.json").unlink()
    assert evaluate.main([str(copy), "suite=standard"]) == 0
    captured = capsys.readouterr()
    assert "checkpoint 4 in" in captured.err
    assert captured.out.endswith("2.json\n")
    assert evaluate.main([str(copy), "suite=standard", "step=4"]) == 2
    assert capsys.readouterr().err.count("\n") <= 2
    assert evaluate.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path} is not a run directory: it has no experiment.json; "
        f"run directories nearby: {tmp_path / 'half'}"
    )


def test_figures_of_no_example_are_left_out(run):
    """A class that none of seven examples is of has no recall."""
    assert evaluate.main([str(run), "suite=standard"]) == 0
    whole = read(run)["metrics"]
    recalls = {name: figure for name, figure in whole.items() if "/recall/" in name}
    assert recalls
    assert all(figure["examples"] > 0 and np.isfinite(figure["value"]) for figure in recalls.values())
