"""What evaluations find is kept, beside what was there, and shown."""

import json
import threading

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evaluation.findings import Card, Figure, Findings, Section, Table
from mmjax.evaluation.results import Results, figures_of
from mmjax.evaluation.statistic import Statistic

RNG = np.random.default_rng(0)
RIGHT = RNG.random(50) < 0.7
FINDINGS = Findings(
    {
        "label/accuracy": Statistic.ratio(RIGHT, np.ones(50)),
        "label/nothing": Statistic.ratio(np.zeros(50), np.zeros(50)),
        "image/psnr": Statistic.ratio(RNG.normal(20, 2, 8), np.ones(8)),
    },
    {"image/fid": Figure(12.5, None, None, 8)},
    [
        Section(
            "label",
            "What it is about.",
            [Table(["class", "found"], [["<one>", "0.5"]])],
            ["<svg></svg>"],
            [Card("test/3", [("data:image/png;base64,AA", "image")], [("text", [("red", 0.5)])], ["it is red"])],
        )
    ],
)
ABOUT = {"name": "toy", "fingerprint": "0123", "data": {"test": "toy/1"}, "readers": {}, "asked": ["standard"]}


def add(results, step, label="test", findings=FINDINGS, **more):
    return results.add(step, label, {"standard": findings}, **{**ABOUT, **more})


def test_figures_have_intervals_where_they_are_of_examples():
    found = figures_of(FINDINGS)
    assert set(found) == {"label/accuracy", "image/psnr", "image/fid"}
    accuracy = found["label/accuracy"]
    assert accuracy.value == pytest.approx(RIGHT.mean())
    assert accuracy.low < accuracy.value < accuracy.high
    assert (accuracy.examples, found["image/psnr"].examples) == (50, 8)
    assert (found["image/fid"].low, found["image/fid"].high) == (None, None)


def test_what_is_found_stands_beside_what_was_there(tmp_path):
    results = Results(tmp_path)
    path = add(results, 10)
    assert path == tmp_path / "evaluations" / "10.json"
    other = Findings({"label/accuracy": Statistic.ratio(~RIGHT, np.ones(50))})
    add(results, 10, "test given text", other, readers={"image": "eyes 45"}, asked=["standard", "probe"])
    whole = json.loads(path.read_text())
    assert whole["step"] == 10
    assert whole["fingerprint"] == "0123"
    assert whole["data"] == {"test": "toy/1"}
    assert whole["readers"] == {"image": "eyes 45"}
    assert whole["metrics"]["test/label/accuracy"]["value"] == pytest.approx(RIGHT.mean())
    assert whole["metrics"]["test given text/label/accuracy"]["value"] == pytest.approx(1 - RIGHT.mean())
    assert whole["metrics"]["test/image/fid"] == {"value": 12.5, "low": None, "high": None, "examples": 8}
    assert results.has(10, "test", ["standard"])
    assert not results.has(10, "test", ["standard", "probe"])
    assert results.has(10, "test given text", ["probe"])
    assert not results.has(20, "test", ["standard"])


def test_the_page_shows_all_of_it_and_loads_nothing(tmp_path):
    results = Results(tmp_path)
    for step in (10, 20):
        add(results, step)
    assert results.steps() == [10, 20]
    page = (tmp_path / "evaluations" / "report.html").read_text()
    for said in (
        "test/label",
        "What it is about.",
        "&lt;one&gt;",
        "it is red",
        "<h2>Curves</h2>",
        "<svg></svg>",
        "fid",
    ):
        assert said in page
    assert "<one>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_evaluations_at_the_same_time_lose_nothing(tmp_path):
    labels = [f"test {number}" for number in range(6)]
    threads = [threading.Thread(target=add, args=(Results(tmp_path), 10, label)) for label in labels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = json.loads((tmp_path / "evaluations" / "10.json").read_text())
    assert set(whole["done"]) == set(labels)
    assert len(whole["metrics"]) == 3 * len(labels)


def test_a_damaged_file_is_left_alone(tmp_path):
    results = Results(tmp_path)
    path = add(results, 10)
    for content in ("{bad", "[]", '{"step": 10}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"10.json is no evaluation in valid JSON, perhaps cut short"):
            add(results, 10)
        assert path.read_text() == content
