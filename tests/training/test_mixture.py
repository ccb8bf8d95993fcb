"""A run of a mixture: what it logs of each source, what it needs, and what it may go on with."""

import json

import chz
import pytest

from launch.command_line import load_experiment
from mmjax.compilation import cache_compilations
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.data.mixture import Mixture, MixtureSource, MixtureStage
from mmjax.data.sources.interactions import Interactions
from mmjax.errors import UserError
from mmjax.training import loop
from tests.ablation.small import TINY

WORDS = tuple(word for word in TINY if not word.startswith(("seeds", "match", "train.steps", "data.source")))
SIZE = 16  # of a batch
STEPS = 6


def interactions(test=16, **options) -> Interactions:
    return Interactions(validation=24, test=test, **options)


SOURCES = {
    "one": MixtureSource(source=interactions(train=40), weight=3.0),
    "two": MixtureSource(source=interactions(train=24, test=8, seed=1), weight=1.0, fields={"a": None}),
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))

    def run(run_dir, *words, sources=SOURCES, stages=()):
        keys = (f"data_dir={folder}", f"run_dir={run_dir}", f"train.steps={STEPS}", f"train.batch_size={SIZE}")
        keys = dict(word.split("=", 1) for word in (*WORDS, *keys, "checkpoint.every=3", "train.log_every=2", *words))
        experiment = resolve(load_experiment("interactions"), [f"{key}={value}" for key, value in keys.items()])
        source = Mixture(sources=sources, stages=tuple(stages))
        loop.train(chz.replace(experiment, data=chz.replace(experiment.data, source=source)))
        return json.loads((run_dir / "summary.json").read_text())

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The run directory of a finished run, and its summary."""
    run_dir = tmp_path_factory.mktemp("whole")
    return run_dir, train(run_dir)


def lines(run_dir):
    return {line["step"]: line for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())}


def test_what_is_read_of_each_source_is_logged(whole):
    run_dir, _ = whole
    logged = lines(run_dir)
    for step in (2, 4, 6):
        read = {name: logged[step][f"data/{name}/examples"] for name in SOURCES}
        assert read == {"one": step * SIZE * 3 / 4, "two": step * SIZE / 4}
        assert logged[step]["data/two/epochs"] == read["two"] / 24
    report = (run_dir / "report.html").read_text()
    assert "By source" in report
    assert sorted(json.loads((run_dir / "data.json").read_text())) == [
        f"{split}/{name}" for split in ("test", "train", "validation") for name in SOURCES
    ]


def test_each_source_has_metrics_of_its_own(whole):
    """They add up to those of all, by the number of examples that have a label."""
    metrics = whole[1]["metrics"]
    for metric in ("label/accuracy", "label/loss"):
        one, two = (metrics[f"test/{name}/{metric}"] for name in SOURCES)
        assert (16 * one + 8 * two) / 24 == pytest.approx(metrics[f"test/{metric}"], rel=1e-5)
    assert one != two


def test_a_stage_and_a_source_may_be_added_from_the_newest_step_on(train, whole, tmp_path, capsys):
    added = {**SOURCES, "new": MixtureSource(source=interactions(train=8, seed=2), weight=0.0)}
    stages = [MixtureStage(start=STEPS, weights={"new": 1.0, "two": 1.0})]
    train(tmp_path)
    longer = train(tmp_path, "train.steps=8", "train.replan=true", sources=added, stages=stages)
    assert f"extending {tmp_path} to 8 steps from step {STEPS}" in capsys.readouterr().err
    read = lines(tmp_path)[8]
    assert [read[f"data/{name}/examples"] for name in added] == [72, 24 + SIZE, SIZE]
    assert "train/new" in json.loads((tmp_path / "data.json").read_text())
    # The same as at once.
    assert experiment_file.read(tmp_path).data.source.stages[0].start == STEPS
    other = tmp_path / "other"
    assert train(other, "train.steps=8", sources=added, stages=stages)["examples_digest"] == longer["examples_digest"]

    for change, reason in (
        ({"sources": added, "stages": [MixtureStage(start=3, weights={"one": 1.0})]}, "may change from step 8 on only"),
        ({"sources": added}, "may change from step 8 on only"),
        ({"stages": [MixtureStage(start=STEPS, weights={"two": 1.0})]}, "new sources and stages only"),
    ):
        with pytest.raises(UserError, match=f"belongs to another experiment .*{reason}.*; set another run_dir"):
            train(tmp_path, "train.steps=8", "train.replan=true", **change)


def test_a_source_that_has_changed_is_named(train, tmp_path, monkeypatch):
    train(tmp_path, "train.steps=3")
    path = tmp_path / "data.json"
    began = json.loads(path.read_text())
    for name in ("train/two", "validation/three"):  # other examples, and a split that is gone
        split, _, source = name.partition("/")
        path.write_text(json.dumps(began | {name: "of others"}))
        with pytest.raises(
            UserError, match=f"^the data of data.source.sources.{source} in the split {split} have changed"
        ):
            train(tmp_path, "train.steps=3")


def test_too_few_epochs_are_one_sentence_before_anything_is_compiled(train, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "TrainProgram", lambda *_: pytest.fail("it came to the program"))
    sources = {name: chz.replace(part, epochs=0.5) for name, part in SOURCES.items()}
    with pytest.raises(
        UserError, match=r"^every source with a weight has reached its limit of epochs after 32 examples; "
    ):
        train(tmp_path, sources=sources)
    assert not tmp_path.joinpath("experiment.json").exists()


def test_a_source_with_the_name_of_an_output_is_one_sentence(train, tmp_path):
    with pytest.raises(UserError, match=r"^data.source.sources.label and model.outputs.label share a name"):
        train(tmp_path, sources={"label": SOURCES["one"]})
