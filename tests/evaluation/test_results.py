"""What evaluations find is kept, beside what was there, and shown."""

import base64
import json
import math
import os
import re
import stat
import threading

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evaluation.results import Results, metrics_of
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.metrics.statistics import Statistic
from mmjax.reports.page import Card, Section, Table

RNG = np.random.default_rng(0)
RIGHT = RNG.random(50) < 0.7
FINDINGS = SuiteResult(
    {
        "label/accuracy": Statistic.ratio(RIGHT, np.ones(50)),
        "label/nothing": Statistic.ratio(np.zeros(50), np.zeros(50)),
        "image/psnr": Statistic.ratio(RNG.normal(20, 2, 8), np.ones(8)),
    },
    {"image/fid": Metric(12.5, None, None, 8)},
    [
        Section(
            "label",
            "What it is about.",
            [Table(["class", "found"], [["<one>", "0.5"]])],
            ["<svg><g/></svg>"],
            [Card("test/3", [("data:image/png;base64,AA", "image")], [("text", [("red", 0.5)])], ["it is red"])],
            "As it stands.",
        )
    ],
)
ABOUT = {"name": "toy", "fingerprint": "0123", "data": {"test": "toy/1"}, "requests": ["standard"]}


def add(results, step, label="test", findings=FINDINGS, **more):
    return results.add(step, label, {"standard": findings}, **{**ABOUT, **more})


def test_figures_have_intervals_where_they_are_of_examples():
    found = metrics_of(FINDINGS)
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
    other = SuiteResult({"label/accuracy": Statistic.ratio(~RIGHT, np.ones(50))}, readers={"image": "eyes 45"})
    add(results, 10, "test given text", other, requests=["standard", "probe"])
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
        "As it stands.",
        "fid",
    ):
        assert said in page
    *curves, drawing = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(curves) == 3  # of the accuracy, the FID and the loss
    drawing = base64.b64decode(drawing).decode()
    assert drawing.startswith("<svg><style>")
    assert drawing.endswith("</style><g/></svg>")
    for colour in ("--hue-0:", "--grid:", "prefers-color-scheme: dark"):
        assert colour in drawing
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
    whole = json.loads(path.read_text())
    figure = {"value": 1.0, "low": None, "high": None, "examples": 3}
    wrong = [
        {"step": 11},
        {"fingerprint": 5},
        {"data": ["test"]},
        {"data": {"test": {}}},
        {"readers": None},
        {"done": {"test": [5]}},
        {"done": {"test": None}},
        {"metrics": [figure]},
        *({"metrics": {"test/label/accuracy": figure | change}} for change in ({"value": "1"}, {"examples": None})),
        {"metrics": {"test/label/accuracy": figure | {"value": math.nan}}},
        {"metrics": {"test/label/accuracy": figure | {"value": 10**400}}},
        {"metrics": {"test/\ud800/accuracy": figure}},
    ]
    garbage = [b"{bad", b"[]", b'{"step": 10}', b"\xff\xfe", b"", b"[" * 100_000, b'{"step": %s}' % (b"9" * 5000)]
    for content in [*garbage, *(json.dumps(whole | change).encode() for change in wrong)]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"10.json is not an evaluation in valid JSON, perhaps cut short") as error:
            add(results, 10)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == content
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"10.json is not an evaluation in valid JSON"):
        add(results, 10)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_names_that_are_no_steps_are_left_alone(tmp_path):
    results = Results(tmp_path)
    path = add(results, 10)
    for name in ("²", "٣", "010", "9" * 200, "notes"):
        path.with_name(f"{name}.json").write_text("{}")
    assert results.steps() == [10]


def test_damaged_sections_are_written_again(tmp_path, capsys):
    results = Results(tmp_path)
    add(results, 10)
    path = tmp_path / "evaluations" / "10" / "sections.json"
    whole = path.read_text()
    garbage = ["", "{bad", "[]", "5", "[" * 100_000, '{"test": {"standard": [{"title": "label"}]}}', '{"test": 5}']
    changes = [('"drawings": [', '"drawings": 5, "was": ['), ("0.5]", '"0.5"]'), ("0.5]", "NaN]"), ("red", "\\ud800")]
    for content in [*garbage, *(whole.replace(*change) for change in changes)]:
        assert content != whole
        path.write_text(content)
        add(results, 10)
        assert capsys.readouterr().err == f"{path} is damaged; the page leaves out what it held\n"
        assert path.read_text() == whole
        assert "What it is about." in (tmp_path / "evaluations" / "report.html").read_text()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot write .*sections.json: the existing path is not a regular file"):
        add(results, 10)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_what_stands_in_a_file_from_elsewhere_does_not_run(tmp_path):
    results = Results(tmp_path)
    add(results, 10)
    path = tmp_path / "evaluations" / "10" / "sections.json"
    script = '</style></svg>"><script>alert(1)</script>'
    for text in ("<svg><g/></svg>", "What it is about.", "it is red", "As it stands.", "data:image/png;base64,AA"):
        path.write_text(path.read_text().replace(json.dumps(text), json.dumps(script)))
    add(results, 10, "other", SuiteResult({}, {}, []))
    page = (tmp_path / "evaluations" / "report.html").read_text()
    assert page.count("&lt;script&gt;") >= 3
    assert "<script" not in page
