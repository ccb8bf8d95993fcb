"""Several seeds under one program."""

import dataclasses
import json
import re
import shutil
import signal

import chz
import jax.numpy as jnp
import pytest

from launch.command_line import load_experiment
from mmjax.compilation import cache_compilations
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.data.sources.interactions import Interactions
from mmjax.errors import Preempted, UserError
from mmjax.evaluation.eval_result import EvalResult
from mmjax.training import loop, run_group
from mmjax.training.run_dir import RunDir
from mmjax.training.run_group import RunGroup
from tests.ablation.small import TINY


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))  # the same programs are run again and again
    return folder


def runs(folder, data_dir, *words):
    given = tuple(word.partition("=")[0] for word in words)
    tiny = [word for word in TINY if not word.startswith(("seeds", "match", *given))]
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


@pytest.mark.slow
def test_seeds_together_on_a_mesh_are_seeds_apart(apart, data_dir, tmp_path):
    mesh = ("mesh.data=1", "mesh.fsdp=2", "rules=fsdp")
    loop.train_together(runs(tmp_path, data_dir, *mesh))
    check(tmp_path, apart)


def test_seeds_that_stand_at_different_steps_or_do_not_fit_go_one_after_another(apart, data_dir, tmp_path, monkeypatch):
    """One was done before; then both begin, and there is no memory for both."""
    sizes = []
    train_loop = loop.train_loop

    def note_and_train(run):
        sizes.append((run.start, len(run.runs)))
        return train_loop(run)

    monkeypatch.setattr(loop, "train_loop", note_and_train)
    monkeypatch.setattr(run_group, "device_memory", lambda: 300_000.0)  # what one run holds takes 230 kB
    first, second = runs(tmp_path / "fit", data_dir)
    loop.train_together([first, second])
    assert sizes == [(0, 1), (0, 1)]
    check(tmp_path / "fit", apart)

    sizes.clear()
    monkeypatch.undo()
    monkeypatch.setattr(loop, "train_loop", note_and_train)
    shutil.copytree(apart / "1", tmp_path / "steps" / "1")
    loop.train_together(runs(tmp_path / "steps", data_dir))
    assert sizes == [(0, 1), (6, 1)]
    check(tmp_path / "steps", apart)


def test_a_signal_in_the_last_evaluation_loses_no_step(apart, data_dir, tmp_path, monkeypatch):
    looked = []

    def look(self, step, split, monitor, host):
        looked.append((step, split))
        if looked[-1] == (6, "test"):
            signal.raise_signal(signal.SIGTERM)
        original(self, step, split, monitor, host)

    original = RunGroup._on_evaluated
    monkeypatch.setattr(RunGroup, "_on_evaluated", look)
    first, _ = runs(tmp_path, data_dir)
    with pytest.raises(Preempted, match="stopped after step 6 with a checkpoint"):
        loop.train(first)
    assert [split for step, split in looked if step == 6].count("test") == 1
    assert not (tmp_path / "0" / "summary.json").exists()
    monkeypatch.undo()
    loop.train(first)
    assert losses(tmp_path, 0) == losses(apart, 0)
    for name in ("parameters_digest", "metrics"):
        assert summary(tmp_path, 0)[name] == summary(apart, 0)[name]


def test_a_skipped_step_is_left_out_of_the_averages_and_counted(apart, data_dir, tmp_path, monkeypatch):
    """Steps 3 and 4 are logged together; of these, the third sees no number."""
    next_batch = RunGroup.next_batch

    def spoil(self):
        batches = next_batch(self)
        if batches[0].host.step != 2:
            return batches
        values = {
            name: jnp.full_like(array, jnp.nan) if jnp.issubdtype(array.dtype, jnp.floating) else array
            for name, array in batches[0].batch.values.items()
        }
        batch = dataclasses.replace(batches[0].batch, values=values)
        return [dataclasses.replace(batches[0], batch=batch)]

    monkeypatch.setattr(RunGroup, "next_batch", spoil)
    first, _ = runs(tmp_path, data_dir)
    loop.train(first)
    lines = list(map(json.loads, (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()))
    assert {line["step"]: line["train/skipped"] for line in lines if "train/loss" in line} == {1: 0, 2: 0, 4: 1, 6: 1}
    assert all(value is not None for line in lines for value in line.values())
    assert losses(tmp_path, 0)[:2] == losses(apart, 0)[:2]


def scripted(monkeypatch, accuracies):
    """Has the evaluation after each step find these accuracies."""
    at = []
    evaluate, figures = RunGroup.evaluate, EvalResult.figures
    monkeypatch.setattr(RunGroup, "evaluate", lambda self, *args: at.append(args[0]) or evaluate(self, *args))
    monkeypatch.setattr(
        EvalResult, "figures", lambda self: figures(self) | {"label/accuracy": accuracies.get(at[-1], 0.1)}
    )


def kept(folder):
    return sorted(int(path.name) for path in (folder / "0" / "checkpoints").iterdir())


BEST = ("train.evaluate_every=2", "checkpoint.keep=1", "checkpoint.best_metric=validation/label/accuracy")


def test_only_the_evaluated_step_is_the_best(data_dir, tmp_path, monkeypatch):
    scripted(monkeypatch, {2: 0.9, 4: 0.9})
    first, _ = runs(tmp_path, data_dir, *BEST, "checkpoint.every=1")
    loop.train(first)
    assert kept(tmp_path) == [2, 6]


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_the_same_checkpoints(data_dir, tmp_path, monkeypatch):
    """Stopped before an evaluation that is due, between two checkpoints, and before the last evaluation."""
    scripted(monkeypatch, {2: 0.9, 4: 0.5})
    record_batch = RunDir.record_batch
    for stops in ((), (2, 3, 6)):
        first, _ = runs(tmp_path / str(len(stops)), data_dir, *BEST, "checkpoint.every=2")
        for stop in stops:

            def record_and_ask(self, step, host, stop=stop):
                record_batch(self, step, host)
                if step + 1 == stop:
                    signal.raise_signal(signal.SIGTERM)

            with monkeypatch.context() as context:
                context.setattr(RunDir, "record_batch", record_and_ask)
                with pytest.raises(Preempted, match=f"stopped after step {stop} with a checkpoint"):
                    loop.train(first)
        loop.train(first)
        assert kept(tmp_path / str(len(stops))) == [2, 6]
        lines = map(json.loads, (tmp_path / str(len(stops)) / "0" / "metrics.jsonl").read_text().splitlines())
        assert [line["step"] for line in lines if "validation/label/accuracy" in line] == [2, 4, 6]


def test_a_best_checkpoint_needs_steps_that_are_evaluated_and_saved(data_dir, tmp_path):
    first, _ = runs(tmp_path, data_dir, *BEST, "checkpoint.every=3")
    with pytest.raises(UserError, match=r"with train.evaluate_every=2 and checkpoint.every=3 no step before"):
        loop.train(first)
    assert not (tmp_path / "0").exists()
    short, _ = runs(tmp_path, data_dir, *BEST, "checkpoint.every=3", "train.steps=2")  # has only the last checkpoint
    loop._check_best_metric(short)


@pytest.mark.parametrize(
    ("metric", "splits", "listed"),
    [
        ("valid/label/accuracy", None, "train, validation, test"),
        ("label/accuracy", None, "train, validation, test"),
        ("test/label/accuracy", None, "train, validation, test"),
        ("validation/label/accuracy", ("train", "test"), "train, test"),
    ],
)
def test_the_best_metric_is_of_the_split_that_is_evaluated(metric, splits, listed, data_dir, tmp_path, monkeypatch):
    if splits is not None:
        monkeypatch.setattr(Interactions, "splits", property(lambda self: splits))
    monkeypatch.setattr(loop, "TrainProgram", lambda *args: pytest.fail("it came to building the model"))
    words = ("train.evaluate_every=2", "checkpoint.every=2", f"checkpoint.best_metric={metric}")
    first, _ = runs(tmp_path, data_dir, *words)
    with pytest.raises(UserError) as error:
        loop.train(first)
    assert str(error.value) == (
        f"checkpoint.best_metric={metric} must be a metric of the validation split, such as validation/OUTPUT/loss: "
        f"training evaluates only that one before its last step; the source has the splits {listed}"
    )
    assert not (tmp_path / "0").exists()


def test_texts_that_are_cut_are_told_once(data_dir, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise UserError("stopped before the model is built")

    monkeypatch.setattr(loop, "TrainProgram", stop)
    said = {}
    for length in (3, 100):
        with pytest.raises(UserError, match="stopped before"):
            loop.train_together(runs(tmp_path, data_dir, f"data.inputs.a.length={length}"))
        said[length] = capsys.readouterr().err
    assert said[100] == ""
    assert re.fullmatch(
        r"a: \d+ of 88 sampled texts are longer than 3 tokens .*raise data.inputs.a.length.*\n", said[3]
    )


def test_two_runs_of_one_directory_at_once(data_dir, tmp_path, monkeypatch):
    first, _ = runs(tmp_path, data_dir)
    train_loop, refused = loop.train_loop, []

    def start_another(run):
        monkeypatch.setattr(loop, "train_loop", train_loop)
        with pytest.raises(UserError) as error:
            loop.train(first)
        refused.append(str(error.value))
        raise UserError("enough")

    monkeypatch.setattr(loop, "train_loop", start_another)
    with pytest.raises(UserError, match="enough"):
        loop.train(first)
    assert refused == [f"another process is training in {tmp_path / '0'}; wait until it ends, or set another run_dir"]


def test_a_command_that_failed_before_its_first_step_can_be_corrected(data_dir, tmp_path, monkeypatch):
    def fail(run):
        raise UserError("not today")

    monkeypatch.setattr(loop, "train_loop", fail)
    for experiment in runs(tmp_path, data_dir):
        with pytest.raises(UserError, match="not today"):
            loop.train(chz.replace(experiment, run_dir=str(tmp_path)))
    assert experiment_file.read(tmp_path).seed == 1


def test_training_evaluates_on_as_many_examples_as_asked(data_dir, tmp_path, monkeypatch):
    seen = []
    original = RunGroup._on_evaluated
    monkeypatch.setattr(
        RunGroup, "_on_evaluated", lambda self, *args: seen.append((args[1], args[3].ids)) or original(self, *args)
    )
    first, _ = runs(tmp_path, data_dir, "mesh.data=1", "train.evaluate_examples=20")
    loop.train(first)
    last = seen[-3:]
    assert [split for split, _ in last] == ["validation", "test", "test"]
    ids = [name for split, names in last for name in names if split == "test" and name]
    assert len(ids) == len(set(ids)) == 20
    assert summary(tmp_path, 0)["metrics"]["test/label/accuracy"] * 20 % 1 == pytest.approx(0, abs=1e-5)
