"""Every suite by the command, of a run whose label one modality tells and the other does not."""

import json

import pytest

from launch import command_line, evaluate
from launch.train import train

TINY = (
    *("data.source.unique_a=1", "data.source.synergy=0", "data.source.train=64", "data.source.validation=8"),
    *(
        "data.source.test=21",
        "model.width=16",
        "model.fusion=Concat",
        "model.dtype=float32",
        "model.unroll=false",
        "train.steps=2",
    ),
    *("train.batch_size=8", "mesh.data=1"),
)

ALL = (
    *("suite=all", "suites.attribution.examples=6", "suites.generation.examples=6"),
    "suites.probe.at=pooled,encoders/a",
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    run = folder / "run"
    words = [*TINY, f"run_dir={run}", f"data_dir={folder}"]
    train(command_line.resolve(command_line.load_experiment("interactions"), words))
    assert evaluate.main([str(run), *ALL, "mesh.data=2"]) == 0
    whole = json.loads((run / "evaluations" / "2.json").read_text())
    # Those that another test has defined in this process are among all suites, too.
    done = [each for each in whole["done"]["test"] if not each.startswith("top_k")]
    assert done == [
        *("attribution examples=6", "generation examples=6", "probe at=pooled,encoders/a", "robustness", "slices"),
        *("standard", "zero_shot"),
    ]
    assert [*whole["done"]] == ["test"]
    page = (run / "evaluations" / "report.html").read_text()
    for title in ("Robustness: a", "By label", "Attribution of label"):
        assert f"test: {title}" in page
    return whole["metrics"]


def test_tables_of_robustness_have_a_row_a_condition(metrics, tmp_path_factory):
    """However many metrics there are, a page is wide enough."""
    run = next(tmp_path_factory.getbasetemp().glob("suites*/run"))
    sections = json.loads((run / "evaluations" / "2" / "sections.json").read_text())["test"]["robustness"]
    assert [section["title"] for section in sections] == ["Robustness: a", "Robustness: b"]
    for section, modality in zip(sections, "ab", strict=True):
        (table,) = section["tables"]
        assert table["columns"] == ["metric", modality, "value", "change (95%)"]
        assert [row[1] for row in table["rows"]] == ["intact", "without", "noised", "swapped"] * 2
        assert table["rows"][0][0] == "label/accuracy"
        assert table["rows"][1][2] == f"{metrics[f'test/label/without_{modality}/accuracy']['value']:.4f}"


def test_every_suite_has_its_figures(metrics):
    assert metrics["test/label/accuracy"]["examples"] == 21
    for change in ("without", "noised", "swapped"):
        for modality in "ab":
            assert metrics[f"test/label/{change}_{modality}/accuracy"]["examples"] == 21
    assert metrics["test/label/without_a/loss"]["value"] != metrics["test/label/loss"]["value"]
    assert metrics["test/label/label=0/accuracy"]["examples"] + metrics["test/label/label=1/accuracy"]["examples"] == 21
    assert metrics["test/probe/encoders/a/label/linear_accuracy"]["examples"] == 21
    shares = [metrics[f"test/label/attribution/share/{modality}"] for modality in "ab"]
    assert sum(share["value"] for share in shares) == pytest.approx(1, abs=1e-6)
    assert {share["examples"] for share in shares} == {6}
    assert metrics["test/label/attribution/completeness_error"]["value"] < 0.01
    assert "test/label/shapley/a" in metrics


def test_a_suite_that_has_nothing_to_judge_says_so(metrics, tmp_path_factory, capsys):
    """What was found before is kept."""
    run = next(tmp_path_factory.getbasetemp().glob("suites*/run"))
    assert evaluate.main([str(run), "split=validation", "suite=standard,zero_shot"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: suite=zero_shot has nothing to evaluate in {run}; leave it out: ")
    whole = json.loads((run / "evaluations" / "2.json").read_text())
    assert whole["done"]["validation"] == ["standard"]
    assert "validation/label/accuracy" in whole["metrics"]
