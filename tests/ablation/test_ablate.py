"""Whole ablations, made small."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest

from mmjax.ablation.cell import Cell
from mmjax.metrics.statistics import bootstrap_interval, paired_difference
from mmjax.sharding import distributed
from tests.ablation.small import run, table_of

CHOICES = "choices=Sum,Concat"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def done(data_dir):
    folder = data_dir / "done"
    run(folder, data_dir, CHOICES)
    return folder


def test_the_table_holds_what_was_reached(done):
    table = table_of(done)
    assert (table["experiment"], table["over"], table["seeds"]) == ("interactions", ["model.fusion"], [0, 1])
    assert [(cell["choice"], cell["seed"]) for cell in table["cells"]] == [
        (choice, seed) for choice in ("Sum", "Concat") for seed in (0, 1)
    ]
    for cell in table["cells"]:
        summary = json.loads((done / cell["run_dir"] / "summary.json").read_text())
        assert cell["metrics"] == summary["metrics"]
        assert [step for step, _ in cell["curve"]] == [3, 6]
        assert cell["step_seconds"] > 0
        assert cell["peak_bytes"] > cell["parameters"] * 4
    for choice, row in table["summary"].items():
        reached = [cell["metrics"]["test/label/accuracy"] for cell in table["cells"] if cell["choice"] == choice]
        assert row["mean"] == pytest.approx(np.mean(reached), abs=1e-6)
        assert row["low"] <= row["mean"] <= row["high"]
    assert table["winner"]["choice"] in table["summary"]
    assert table["baseline"] == "Sum"
    assert table["truth"] == {"unique_a": 0, "unique_b": 0, "redundant": 0, "synergy": 1, "total": 1}


def test_intervals_are_over_clusters_of_answers(done, data_dir, tmp_path):
    """Every answer is its own cluster where nothing else is said; answers in clusters are resampled together."""
    folder = tmp_path / "clustered"
    shutil.copytree(done, folder)
    values = {}
    for path in folder.glob("cells/*/*/answers.json"):
        answers = json.loads(path.read_text())
        assert answers["clusters"] == list(range(40))
        path.write_text(json.dumps(answers | {"clusters": [place // 10 for place in range(40)]}))
        values.setdefault(path.parts[-3], []).append([float(right) for right in answers["correct"]])
    run(folder, data_dir, CHOICES)
    clusters = np.arange(40) // 10
    table = table_of(folder)
    for choice, rows in values.items():
        interval = bootstrap_interval(np.array(sorted(rows)), clusters)
        row = table["summary"][choice]
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(dataclasses.astuple(interval), abs=0.05)
    difference = paired_difference(np.array(values["Concat"]), np.array(values["Sum"]), clusters)
    assert table["summary"]["Concat"]["difference"]["p"] == pytest.approx(difference.p_value)
    assert table["summary"] != table_of(done)["summary"]


def test_contributions_add_up(done):
    for row in table_of(done)["summary"].values():
        assert sum(row["shapley"].values()) == pytest.approx(row["probed"] - row["none"], abs=1e-9)
        assert set(row["missing"]) == set(row["noise"]) == {"a", "b"}


def test_pages_are_written(done):
    assert "Concat" in (done / "table.md").read_text()
    assert "<svg" in (done / "report.html").read_text()


def test_what_is_done_is_not_done_again(done, data_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("seed_*/*") if path.is_file()}
    answers = done / "cells" / "Sum" / "seed_1" / "answers.json"
    content = answers.read_text()
    answers.unlink()
    run(done, data_dir, CHOICES)
    assert answers.read_text() == content
    after = {path: path.stat().st_mtime_ns for path in done.rglob("seed_*/*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} == {answers}
    assert capsys.readouterr().out.splitlines() == [str(done / "table.json")]


def test_a_seed_has_the_result_of_its_own_run(done, data_dir, tmp_path):
    from launch import train
    from launch.command_line import main

    cell = json.loads((done / "cells" / "Sum" / "seed_1" / "summary.json").read_text())
    words = [word for word in run.__globals__["TINY"] if not word.startswith(("seeds", "match"))]
    alone = ["interactions", *words, "model.fusion=Sum", "seed=1", f"run_dir={tmp_path}", f"data_dir={data_dir}"]
    assert main(train.train, "", alone) == 0
    single = json.loads((tmp_path / "summary.json").read_text())
    assert single["examples_digest"] == cell["examples_digest"]
    for name, value in single["metrics"].items():
        assert cell["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_a_failed_choice_is_reported_and_the_rest_go_on(data_dir, tmp_path, capsys):
    words = ("over=optimizer.learning_rate", "choices=0.001,1e30", "train.stop_after_skipped=2", "seeds=1")
    words = (*words, "model.fusion=Sum")
    from tests.ablation import small

    tiny = [word for word in small.TINY if word != "seeds=2"]
    assert small.ablate.main(["interactions", *tiny, f"run_dir={tmp_path}", f"data_dir={data_dir}", *words]) == 0
    table = table_of(tmp_path)
    assert list(table["summary"]) == ["0.001"]
    (failed,) = table["failed"]
    assert failed["choice"] == "1e30"
    assert "not finite" in failed["reason"]
    assert "1e30, seed 0, failed" in capsys.readouterr().err
    assert failed["reason"] in (tmp_path / "table.md").read_text()


def test_processes_share_the_cells(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(distributed.COORDINATOR, "localhost:1234")
    monkeypatch.setenv(distributed.PROCESSES, "2")
    for process, result in ((1, tmp_path), (0, tmp_path / "table.json")):
        monkeypatch.setenv(distributed.PROCESS_ID, str(process))
        run(tmp_path, data_dir, CHOICES)
        assert capsys.readouterr().out.splitlines() == [str(result)]
    assert len(table_of(tmp_path)["cells"]) == 4


def test_a_result_folder_of_another_grid(done, data_dir, capsys):
    before = (done / "table.json").read_bytes()
    run(done, data_dir, CHOICES, "optimizer.learning_rate=0.1", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{done} holds another grid (optimizer.learning_rate: 0.002 -> 0.1); set another run_dir" in line
    assert (done / "table.json").read_bytes() == before


def test_a_grid_may_grow(done, data_dir, tmp_path):
    folder = shutil.copytree(done, tmp_path / "grid")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/seed_*/summary.json")}
    run(folder, data_dir, f"{CHOICES},Mean")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(table_of(folder)["cells"]) == 6
    run(folder, data_dir, CHOICES)
    assert table_of(folder)["winner"] == table_of(done)["winner"]


def test_a_metric_that_is_not_there(done, data_dir, capsys):
    run(done, data_dir, CHOICES, "metric=test/label/beauty", code=2)
    assert "error: metric=test/label/beauty is not among the figures: " in capsys.readouterr().err


def test_answers_that_were_damaged(done, data_dir, tmp_path, capsys):
    folder = shutil.copytree(done, tmp_path / "grid")
    (path,) = folder.glob("cells/Sum/seed_0/answers.json")
    path.write_text("{bad")
    run(folder, data_dir, CHOICES, code=2)
    assert f"error: {path} is damaged; delete it, and" in capsys.readouterr().err


def test_a_signal_between_steps_is_answered(data_dir, tmp_path, monkeypatch, capsys):
    begun = []

    def run_cell(cell, seeds):
        begun.append(cell.choice)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Cell, "run", run_cell)
    handler = signal.getsignal(signal.SIGTERM)
    run(tmp_path, data_dir, CHOICES, code=75)
    assert begun == ["Sum"]
    assert "stopped before Concat; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["choices=Sum,Addition"], "model.fusion=Addition: no such class; the nearest is"),
        (["over=model.fushion"], "unknown key model.fushion; the nearest is model.fusion"),
        (["over=model.fusion,model.fusion"], "must name one key or several, each once"),
        (["over=model.width"], "model.width is no choice among a few; say which values"),
        (["over=model.width", "choices=16,24", "match=flops"], "which is ablated itself; say match=none"),
        (
            ["over=model.dropout,model.fusion", "choices=0,0.1"],
            "are for 1 key and over=model.dropout,model.fusion for 2 keys",
        ),
        (["choices=Sum"], "model.fusion needs two choices or more"),
        (["choices=Sum,Sum"], "model.fusion needs two choices or more, each once"),
        (["match=size"], "match=size: expected"),
        (["seeds=0"], "seeds=0: must lie between 1 and 1000"),
        (["over=seed", "choices=0,1"], "over=seed: every choice is trained with several seeds anyway"),
        (["over=model.encoders.b", "choices=ViT,AudioTransformer"], "AudioTransformer: model.encoders.b"),
        (["over=train.batch_size", "choices=16,1024", "match=flops"], "model.width"),
    ],
)
def test_mistakes_are_one_line(words, message, data_dir, tmp_path, capsys):
    from tests.ablation import small

    tiny = [word for word in small.TINY if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]
    argv = ["interactions", *tiny, f"run_dir={tmp_path / 'run'}", f"data_dir={data_dir}", *words]
    assert small.ablate.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "run").exists()
