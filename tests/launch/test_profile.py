"""Profiles of real steps, by the command, and what changed from one to another."""

import json
import re

import pytest

from launch import command_line, compare_profiles, profile
from mmjax.config import experiment_file

FLOAT32 = ("model.dtype=float32", "model.unroll=false")
SMALL = (*FLOAT32, "model.width=32", "train.batch_size=64", "steps=3", "mesh.data=1")
LARGE = (
    "model.dtype=float32",
    "model.unroll=false",
    "model.width=32",
    "train.batch_size=2048",
    "steps=1",
    "mesh.data=1",
)


def profiled(folder, *words, small=SMALL):
    assert profile.main(["interactions", *small, *words, f"out={folder}", f"data_dir={folder.parent}"]) == 0
    return json.loads((folder / "profile.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles") / "first"
    profiled(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return json.loads((folder / "profile.json").read_text())


def test_time_is_what_it_is_made_of(whole):
    assert len(whole["steps_seconds"]) == 3
    assert whole["step_seconds"] == sorted(whole["steps_seconds"])[1]
    assert whole["mfu"] == pytest.approx(whole["model_flops"] / whole["step_seconds"] / whole["peak_flops"])
    kernels = sum(kernel["seconds"] for kernel in whole["kernels"])
    assert sum(whole["parts"].values()) == pytest.approx(kernels)
    assert sum(whole["layers"].values()) == pytest.approx(kernels)
    # Kernels that run beside each other are busy together.
    assert 0 < whole["busy_seconds"] <= kernels * 1.001
    assert sum(kernel["flops"] for kernel in whole["kernels"]) == pytest.approx(whole["hardware_flops"])
    assert {"encoders/a", "fusion backward", "optimizer", "other"} <= whole["parts"].keys()
    assert set(whole["compile_seconds"]) == {"drawing parameters", "tracing", "lowering", "compiling"}
    assert whole["recompiled"] == []


def test_memory_has_holders(whole):
    memory = whole["memory_bytes"]
    assert whole["peak_bytes"] == sum(memory[kind] for kind in ("arguments", "outputs", "temporaries"))
    assert max(whole["memory_timeline"]) == memory["estimated temporaries"]
    assert memory["estimated temporaries"] == pytest.approx(memory["temporaries"], rel=0.15)
    assert sum(each["bytes"] for each in whole["memory_holders"]) <= memory["estimated temporaries"]


def test_memory_is_what_the_process_came_to_hold(tmp_path):
    """As far as a process can tell: beside the step's, it holds some megabytes of its own."""
    memory = profiled(tmp_path, small=LARGE)["memory_bytes"]
    assert memory["peak"] > 150e6
    assert memory["peak"] == pytest.approx(memory["measured peak"], rel=0.1)


def test_a_profile_of_a_run_lies_in_its_directory(tmp_path):
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    experiment_file.write(command_line.load_experiment("interactions"), run)
    assert profile.load(str(run)).out == str(run / "profile")
    assert profile.load("interactions").out == "profiles/interactions"
    compared = compare_profiles.ProfileComparison(before=str(run / "profile"), after="profiles/interactions")
    assert compared.out == "profiles/first-interactions"


@pytest.mark.parametrize("content", ["{}", "[]", '{"kernels": [{}]}', "{"])
def test_a_damaged_profile_is_named(content, folder, tmp_path, capsys):
    (tmp_path / "profile.json").write_text(content)
    (tmp_path / "program.txt").write_text("HloModule none")
    assert profile.main(["compare", str(folder), str(tmp_path)]) == 2
    assert "is missing or damaged" in capsys.readouterr().err.splitlines()[-1]


def test_the_page_holds_all_it_shows(folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "mmjax/layers/linear.py" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert list((folder / "trace").glob("plugins/profile/*/*.xplane.pb"))
    assert (folder / "program.txt").read_text().startswith("HloModule")


@pytest.mark.slow
def test_what_changed_is_told(folder, whole, capsys):
    same, other = folder.parent / "same", folder.parent / "other"
    assert profile.main(["compare", str(folder), str(folder), f"out={same}"]) == 0
    found = json.loads((same / "comparison.json").read_text())
    assert found["ratio"] == 1
    assert found["program_lines_changed"] == 0
    assert (same / "program.diff").read_text() == ""

    deeper = profiled(other, "model.fusion.depth=3")
    capsys.readouterr()
    assert profile.main(["compare", str(folder), str(other), f"out={folder.parent / 'both'}"]) == 0
    captured = capsys.readouterr()
    assert f"x the time of {folder} a step" in captured.err
    found = json.loads((folder.parent / "both" / "comparison.json").read_text())
    assert found["ratio"] == pytest.approx(deeper["step_seconds"] / whole["step_seconds"])
    assert found["program_lines_changed"] > 0
    rows = {row["name"]: row for row in found["changes"]["part"]}
    assert rows["fusion"]["before"] == pytest.approx(whole["parts"]["fusion"])
    assert rows["fusion"]["after"] == pytest.approx(deeper["parts"]["fusion"])
    assert "+fusion" in (folder.parent / "both" / "program.diff").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["interaction"], "the nearest is interactions"),
        (["interactions", "steps=0"], "steps=0: must be at least 1"),
        (["runs/nothing"], "there is no run directory runs/nothing; name one that launch.train has written, or an"),
        (["compare", "here"], "two profiles are compared, not 1"),
        (["compare", "here", "there"], "here holds no profile"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert profile.main(words) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out
