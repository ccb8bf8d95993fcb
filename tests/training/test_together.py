"""Several seeds under one program."""

import json
import shutil

import chz
import pytest

from launch.command_line import load_experiment
from launch.overrides import resolve
from mmjax.compilation import cache_compilations
from mmjax.training import loop
from tests.ablation.small import TINY


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))  # the same programs are run again and again
    return folder


def runs(folder, data_dir, *words):
    tiny = [word for word in TINY if not word.startswith(("seeds", "match"))]
    tiny = [word for word in tiny if word != "mesh.data=1" or not words]
    base = resolve(load_experiment("interactions"), [*tiny, "model.dropout=0.1", f"data_dir={data_dir}", *words])
    return [chz.replace(base, seed=seed, run_dir=str(folder / str(seed))) for seed in range(2)]


def losses(folder, seed):
    lines = (folder / str(seed) / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["train/loss"]) for line in map(json.loads, lines) if "train/loss" in line]


def summary(folder, seed):
    return json.loads((folder / str(seed) / "summary.json").read_text())


@pytest.fixture(scope="module")
def apart(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    for run in runs(folder, data_dir):
        loop.train(run)
    return folder


def check(folder, apart):
    for seed in range(2):
        together, alone = summary(folder, seed), summary(apart, seed)
        assert together["examples_digest"] == alone["examples_digest"]
        assert together["fingerprint"] == alone["fingerprint"]
        assert [step for step, _ in losses(folder, seed)] == [1, 2, 4, 6]
        for (_, one), (_, two) in zip(losses(folder, seed), losses(apart, seed), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-5)
    assert len({summary(folder, seed)["parameters_digest"] for seed in range(2)}) == 2


def test_seeds_together_are_seeds_apart(apart, data_dir, tmp_path):
    paths = loop.train_together(runs(tmp_path, data_dir))
    assert paths == [tmp_path / str(seed) / "summary.json" for seed in range(2)]
    check(tmp_path, apart)


def test_seeds_together_on_a_mesh_are_seeds_apart(apart, data_dir, tmp_path):
    mesh = ("mesh.data=1", "mesh.fsdp=2", "rules=fsdp")
    loop.train_together(runs(tmp_path, data_dir, *mesh))
    check(tmp_path, apart)


def test_seeds_that_stand_at_different_steps_or_do_not_fit_go_one_after_another(apart, data_dir, tmp_path, monkeypatch):
    """One was done before; then both begin, and there is no memory for both."""
    sizes = []
    finish = loop.Loop.finish
    monkeypatch.setattr(loop.Loop, "finish", lambda self: sizes.append((self.start, len(self.runs))) or finish(self))
    monkeypatch.setattr(loop, "_device_memory", lambda: 1000.0)
    first, second = runs(tmp_path / "fit", data_dir)
    loop.train_together([first, second])
    assert sizes == [(0, 1), (0, 1)]
    check(tmp_path / "fit", apart)

    sizes.clear()
    monkeypatch.undo()
    monkeypatch.setattr(loop.Loop, "finish", lambda self: sizes.append((self.start, len(self.runs))) or finish(self))
    shutil.copytree(apart / "1", tmp_path / "steps" / "1")
    loop.train_together(runs(tmp_path / "steps", data_dir))
    assert sizes == [(0, 1), (6, 1)]
    check(tmp_path / "steps", apart)
