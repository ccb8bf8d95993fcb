"""The page is whole, safe, small, and shows what it was given."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.formatting import binary_size, count, fine_duration, number, percent
from mmjax.reports.curves import curve_sections, series
from mmjax.reports.page import Card, Cell, Section, Table
from mmjax.reports.plots import Line, lines_svg, picture_uri, regression_svg, spectrum_uri
from mmjax.reports.run import write_report
from mmjax.types import Image, Label, Text, Vector

EVIL = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }}"
EXPERIMENT = {"format": 1, "fingerprint": "0a1b", "experiment": {"name": "scenes", "note": EVIL}}
SUMMARY = {
    "fingerprint": "0a1b2c3d",
    "step": 1200,
    "seconds": 250.4,
    "metrics": {"train/loss": 0.25, "validation/label/accuracy": 0.9375, "test/label/accuracy": None},
    "parameters_digest": "p" * 64,
    "examples_digest": "e" * 64,
}


def history(steps: int = 30) -> list[dict]:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(10, 10 * steps + 1, 10):
        line = {"step": step, "seconds": step / 7, "train/loss": 3 / step, "train/learning_rate": 1e-3}
        line |= {"train/label/accuracy": float(rng.random()), "train/label/loss": 2 / step}
        if step % 50 == 0:
            line |= {"validation/loss": 4 / step, "validation/image_text/image_to_text_recall@1": step / 1e3}
            line |= {"validation/image_text/text_to_image_recall@1": step / 2e3}
        lines.append(line)
    lines[3]["train/loss"] = float("nan")
    return lines


TARGETS = {"label": Label(tuple("abcdefghij"))}
SIZES = {"train": 1000, "validation": 64, "test": 100}


def examples(count: int = 2, side: int = 32, frames: int = 40) -> list[Section]:
    """Examples as `mmjax.reports.examples` gives them, with mark-up in their texts."""
    rng = np.random.default_rng(0)
    rows = [
        [Cell("shape", tone="right"), "circle", "circle", "90%", "✓"],
        [Cell("colour", tone="wrong"), "red", EVIL, "50%", "✗"],
    ]
    cards = [
        Card(
            f"validation/{index}",
            [
                (picture_uri(rng.random((side, side, 3), np.float32)), "image"),
                (spectrum_uri(rng.normal(size=(frames, 24)).astype(np.float32)), "speech"),
            ],
            [("sentence", [(EVIL, 0.0)])],
            note="1 of 2 right",
            tables=[Table(["output", "true", "predicted", "confidence", ""], rows)],
        )
        for index in range(count)
    ]
    return [Section("Examples", cards=cards)]


def write(folder, lines=(), summary=SUMMARY, shown=(), stopped="", targets=TARGETS):
    facts = {"parameters": count(1_234_567), "devices": "1 x cpu"}
    return write_report(
        folder, EXPERIMENT, lines, summary, shown, facts=facts, targets=targets, sizes=SIZES, stopped=stopped
    )


class Page(HTMLParser):
    """Fails on tags that do not close in order; collects what the page says and refers to."""

    VOID = ("meta", "img", "wbr")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.words, self.references, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    errors = [{"index": i, "id": f"train/{i}", "feature": "speech", "reason": f"truncated {EVIL}"} for i in range(5)]
    errors.append({"index": 9, "id": "train/9", "feature": "image", "reason": "not a picture"})
    lines = "".join(json.dumps(error) + "\n" for error in errors)
    (directory / "data_errors.jsonl").write_text('{"torn\n' + lines + '{"index": 10, "fea')
    write(directory, history(), shown=examples())
    return directory


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(run_dir):
    assert sorted(path.name for path in run_dir.iterdir()) == ["data_errors.jsonl", "report.html"]
    text = (run_dir / "report.html").read_text()
    page = Page(text)
    assert page.references
    kinds = ("data:image/png;base64,", "data:image/svg+xml;base64,")
    assert all(reference.startswith(kinds) for reference in page.references)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)|[^\w]on\w+=", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_it_says_what_it_was_given_and_no_text_becomes_a_tag(run_dir):
    page = Page((run_dir / "report.html").read_text())
    for words in ("Run of scenes", "0a1b2c3d", "1,200", "4 min 10 s", "1.23 M", "label/accuracy", "0.9375"):
        assert words in page.words
    assert page.words.count(EVIL) == 4  # two sentences, two predictions
    assert f"truncated {EVIL}" in page.words
    assert json.loads(next(words for words in page.words if words.startswith('{ "format"'))) == EXPERIMENT
    # In words and marks, not by colour alone.
    assert page.words.count("✓") == 2
    assert page.words.count("✗") == 2
    assert page.words.count("1 of 2 right") == 2
    assert "6 values could not be used and counted as absent." in page.words
    assert "train/0, train/1, train/2" in page.words


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def test_key_results_come_first_and_what_few_read_is_folded(run_dir):
    text = (run_dir / "report.html").read_text()
    assert headings(text)[:3] == ["Metrics that are not finite", "Key results", "Curves"]
    folded = re.findall("<summary><h2>(.*?)</h2>", text)
    assert folded == ["Other metrics", "Optimization and speed", "All final metrics", "Resolved configuration"]


def rows(text: str) -> list[str]:
    """The rows of the first table as words."""
    table = text[text.index("<table>") : text.index("</table>")]
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in re.findall("<tr.*?</tr>", table, re.DOTALL)]


def test_key_results_say_split_size_chance_and_meaning(tmp_path):
    metrics = {
        "test/label/accuracy": 0.125,
        "validation/label/accuracy": 0.9,
        "test/label/loss": 1.0,
        "test/caption/exact": 0.5,
        "test/place/absolute_error": 0.25,
        "test/picture/square_error": 0.03,
        "test/pair/image_to_text_recall@1": 0.25,
        "test/pair/loss": 2.0,
        "test/loss": 3.5,
    }
    targets = TARGETS | {"caption": Text(8, 256), "place": Vector(2), "picture": Image(4, 4, 3)}
    text = write(tmp_path, [{"step": 9, "train/label/accuracy": 0.95}], SUMMARY | {"metrics": metrics}, targets=targets)
    assert rows(text.read_text()) == [
        "output test, 100 examples validation, 64 examples train, last logged chance what it says",
        "label accuracy 12.5 % 90 % 95 % 10 % predictions that are right, of 10 classes no better than chance",
        "caption exact 50 % generated texts that equal the true one",
        "place absolute error 0.25 distance between predicted and true value; lower is better",
        "picture square error 0.03 squared difference between generated and true values; lower is better",
        "pair image to text recall@1 25 % 1 % image queries whose first result of all text examples is the true one",
        "all outputs loss 3.5 what training minimizes, over all outputs",
    ]


def test_a_run_that_stopped_says_so_first(tmp_path):
    text = write(tmp_path, [{"step": 7, "train/loss": 2.0}], SUMMARY | {"metrics": {}}, stopped="It was <lost>.")
    text = text.read_text()
    assert headings(text)[:2] == ["Stopped at step 1,200", "Key results"]
    assert "It was <lost>." in Page(text).words
    assert "The run has not been evaluated: these are of the last training steps." in Page(text).words
    skipped = write(tmp_path, [{"step": 7, "train/skipped": 3.0}], SUMMARY | {"metrics": {}}).read_text()
    assert "3 steps changed nothing, because their loss or gradients were not finite." in Page(skipped).words


def test_a_run_without_anything_to_show(tmp_path):
    page = Page(write(tmp_path, summary=SUMMARY | {"metrics": {}}).read_text())
    assert "No metrics were computed." in page.words
    assert "None: every value that was read could be used." in page.words


def test_many_large_pictures_and_a_long_run_stay_below_two_megabytes(tmp_path):
    long = [{"step": step, "seconds": 1.0 * step} for step in range(20_000)]
    for line in long:
        line |= {f"train/output_{index}/loss": np.sin(line["step"]) + index for index in range(30)}
    path = write(tmp_path, long, shown=examples(4, side=256))
    assert path.stat().st_size < 2e6
    assert "In metrics.jsonl and TensorBoard only: " in path.read_text()


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write(tmp_path / "absent")


def test_each_metric_of_each_output_has_a_plot_of_its_splits():
    main, other, operational = curve_sections(history())
    assert [plot.title for plot in main.drawings] == [
        "loss",
        "image text: image to text recall@1",
        "image text: text to image recall@1",
        "label: accuracy",
    ]
    assert [plot.title for plot in other.drawings] == ["label: loss"]
    assert [plot.title for plot in operational.drawings] == ["learning rate"]
    loss = main.drawings[0]
    assert [key.name for key in loss.legend] == ["train", "validation"]
    train, validation = loss.legend
    assert train.hue != validation.hue
    assert train.dash != validation.dash
    assert validation.note == number(4 / 300)


def test_series_leave_out_what_is_not_finite():
    found = series(history())
    train, validation = found["", "loss"].values()
    assert len(train.x) == 29
    assert 40 not in train.x
    assert list(validation.x) == [50, 100, 150, 200, 250, 300]


def test_one_point_is_a_number_and_no_curve():
    lines = [
        {"step": 5, "train/loss": 2.0},
        {"step": 10, "train/loss": 1.0, "test/loss": 1.5, "test/label/accuracy": 0.5},
    ]
    main, other = curve_sections(lines)
    assert [plot.title for plot in main.drawings] == ["loss"]
    assert other.folded
    assert other.tables[0].rows == [["label: accuracy", "test, step 10", "0.5"]]
    assert curve_sections([]) == []


@pytest.mark.parametrize("value", [1e308, -1e308, np.nan, np.inf])
def test_what_cannot_be_drawn_is_left_out(value):
    lines = [{"step": step, "test/label/loss": loss} for step, loss in ((1, 2.0), (2, value), (3, 1.0))]
    line = series(lines)["label", "loss"]["test"]
    assert list(line.y) == [2, 1]
    assert lines_svg([line]).startswith("<svg")


def test_long_curves_are_averaged_but_end_with_their_last_value():
    line = series([{"step": step, "train/loss": float(step % 2)} for step in range(5981)])["", "loss"]["train"]
    assert len(line.x) == 300
    assert np.allclose(line.y[:-1], 0.5)
    assert (line.x[-1], line.y[-1]) == (5980, 0)


def test_curves_are_xml_in_the_colours_of_the_page():
    svg = lines_svg([Line("train", np.arange(20.0), np.linspace(3, 1, 20))])
    root = ElementTree.fromstring(svg)
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "currentColor" in svg
    assert "var(--hue-0)" in svg
    assert not re.search("#0[0-9a-f]{5}", svg)
    curves = [
        path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path") if "hue-0" in path.get("style", "")
    ]
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", curves[0])]
    assert heights[-1] > heights[0]  # a falling loss falls on the page, where y grows downwards


def test_regression_plots_have_a_point_for_each_example():
    truth = np.random.default_rng(0).random((5, 2))
    svg = regression_svg(truth, truth + 0.1)
    assert svg.count("hue-0") >= 5
    assert svg.count("hue-1") >= 5
    assert regression_svg(truth[:0], truth[:0]).startswith("<svg")


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., [2, 1, 0, *range(3, image.shape[-1])]] if image.ndim == 3 else image


def test_pictures_come_back_as_they_were():
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        pixels = rng.integers(0, 256, (20, 30, channels), np.uint8)
        shown = decoded(picture_uri(pixels.astype(np.float32) / 255))
        assert np.array_equal(shown.reshape(pixels.shape), pixels)
    assert decoded(picture_uri(np.full((300, 900, 3), 2.0, np.float32))).shape == (85, 256, 3)
    assert decoded(picture_uri(np.full((300, 300, 1), np.nan, np.float32))).max() == 0


def test_spectrograms_stand_upright():
    frames = np.zeros((50, 10), np.float32)
    frames[-10:, :2] = 1.0  # late and low
    brightness = decoded(spectrum_uri(frames)).astype(int).sum(-1)
    assert brightness.shape == (20, 50)  # bands are repeated
    assert brightness[-1, -1] > 2 * brightness[0, -1]
    assert brightness[-1, -1] > 2 * brightness[-1, 0]
    assert decoded(spectrum_uri(np.full((5, 4), -np.inf, np.float32))).shape == (4, 5, 3)


def test_pyplot_and_its_global_figures_stay_out(tmp_path):
    code = (
        "import sys; from mmjax.reports.run import *; before = 'matplotlib' in sys.modules;"
        "lines = [{'step': step, 'train/loss': 1.0} for step in (1, 2)];"
        f"given = {str(tmp_path)!r}, {EXPERIMENT!r}, lines, {SUMMARY!r}, [];"
        "write_report(*given, facts={}, targets={}, sizes={});"
        "assert not before and 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_figures_for_a_reader():
    values = (1234567, 0.123456, 12345.0, 3.0, 1e-5, True, "x", None, float("nan"))
    shown = ["1,234,567", "0.1235", "12,345", "3", "1e-05", "True", "x", "not finite", "not finite"]
    assert [number(value) for value in values] == shown


def test_large_numbers_for_a_reader():
    assert [percent(share) for share in (0.9375, 1.0, 1 / 256)] == ["93.8 %", "100 %", "0.391 %"]
    assert [count(value) for value in (523, 1_234_567, 10e9)] == ["523", "1.23 M", "10 B"]
    assert [fine_duration(time) for time in (61, 1.25, 0.00452, 3.7e-5)] == ["1 min 1 s", "1.25 s", "4.52 ms", "37 µs"]
    assert [binary_size(size) for size in (812, 4.5 * 2**30)] == ["812 B", "4.5 GiB"]
