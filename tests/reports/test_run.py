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
from mmjax.formatting import number
from mmjax.reports.plots import curves_svg, panels, picture_uri, spectrum_uri
from mmjax.reports.run import Example, Prediction, write_report

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


def example(index: int = 0, side: int = 32, frames: int = 40) -> Example:
    rng = np.random.default_rng(index)
    return Example(
        id=f"validation/{index}",
        images={"image": rng.random((side, side, 3), np.float32), "digit": np.zeros((28, 28, 1), np.float32)},
        texts={"sentence": EVIL},
        spectra={"speech": rng.normal(size=(frames, 24)).astype(np.float32)},
        predictions=[
            ("shape", "circle", "circle", 0.9),
            ("colour", "red", EVIL, 0.5),
            ("size", None, "small", None),
            Prediction("place", "0.31, 0.52", "0.30, 0.55", None, exact=False),
        ],
    )


class Page(HTMLParser):
    """Fails on tags that do not close in order; collects what the page says and refers to."""

    VOID = ("meta", "img", "br")

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
    write_report(directory, EXPERIMENT, history(), SUMMARY, [example(0), example(1)], facts={"parameters": 1_234_567})
    return directory


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(run_dir):
    assert sorted(path.name for path in run_dir.iterdir()) == ["data_errors.jsonl", "report.html"]
    text = (run_dir / "report.html").read_text()
    page = Page(text)
    assert page.references
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
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
    for words in ("scenes", "0a1b2c3d", "1,200", "4 min 10 s", "1,234,567", "label/accuracy", "0.9375", "not finite"):
        assert words in page.words
    assert page.words.count(EVIL) == 4  # two sentences, two predictions
    assert f"truncated {EVIL}" in page.words
    assert json.loads(next(words for words in page.words if words.startswith('{ "format"'))) == EXPERIMENT
    # Told in words and marks, not by colour alone; what cannot be judged is not.
    assert page.words.count("✓") == 2
    assert page.words.count("✗") == 2
    assert page.words.count("1 of 2 right") == 2
    assert "6 values could not be used and counted as absent." in page.words
    assert "train/0, train/1, train/2" in page.words


def test_ids_are_unique_and_what_they_are_used_by_finds_them(run_dir):
    text = (run_dir / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert used
    assert set(used) <= set(ids)


def test_a_run_that_has_nothing_to_show(tmp_path):
    summary = SUMMARY | {"metrics": {}, "step": 0, "seconds": 0}
    page = Page(write_report(tmp_path, {"name": "bare"}, [], summary, []).read_text())
    for words in (
        "bare",
        "None were computed.",
        "Nothing was logged.",
        "None: every value that was read could be used.",
    ):
        assert words in page.words


def test_many_large_examples_and_a_long_run_stay_below_two_megabytes(tmp_path):
    long = [{"step": step, "seconds": 1.0 * step} for step in range(20_000)]
    for line in long:
        line |= {f"train/output_{index}/loss": np.sin(line["step"]) + index for index in range(30)}
    path = write_report(tmp_path, EXPERIMENT, long, SUMMARY, [example(i, side=400, frames=2000) for i in range(12)])
    assert path.stat().st_size < 2e6
    assert re.search(r"\d+ more left out to keep the page small", path.read_text())


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(tmp_path / "absent", EXPERIMENT, [], SUMMARY, [])


def test_what_every_step_logs_comes_after_its_outputs():
    names = ["gradient_norm", "learning_rate", "steps_per_second", "label/loss", "loss"]
    found = panels([{"step": 1, **{f"train/{name}": 1.0 for name in names}}])
    titles = [panel.title for panel in found]
    assert titles[-3:] == ["learning rate", "gradient norm", "steps per second"]


def test_panels_put_outputs_and_directions_together():
    found = {panel.title: panel for panel in panels(history())}
    assert list(found) == ["loss", "loss by output", "accuracy", "recall@1", "learning rate"]
    assert [curve.name for curve in found["loss"].curves] == ["train", "validation"]
    directions = [curve.name for curve in found["recall@1"].curves]
    assert directions == ["validation image_text image to text", "validation image_text text to image"]
    train, validation = found["loss"].curves
    assert len(train.steps) == 29  # the NaN is left out
    assert 40 not in train.steps
    assert list(validation.steps) == [50, 100, 150, 200, 250, 300]
    assert validation.last == 4 / 300
    assert train.dash != validation.dash
    many = panels([{"step": 1, **{f"train/{index}/loss": 1.0 for index in range(20)}}])
    assert [len(panel.curves) for panel in many] == [8, 8, 4]


@pytest.mark.parametrize("value", [1e308, -1e308, np.nan, np.inf])
def test_what_cannot_be_drawn_is_left_out(value):
    history = [{"step": step, "test/label/loss": loss} for step, loss in ((1, 2.0), (2, value), (3, 1.0))]
    (panel,) = panels(history)
    assert list(panel.curves[0].values) == [2, 1]
    assert curves_svg(panel, "p").startswith("<svg")


def test_long_curves_are_averaged():
    line = panels([{"step": step, "train/loss": float(step % 2)} for step in range(6000)])[0].curves[0]
    assert len(line.steps) == 300
    assert np.allclose(line.values, 0.5)


def test_curves_are_xml_in_the_colours_of_the_page():
    svg = curves_svg(panels(history())[0], "p0")
    root = ElementTree.fromstring(svg)
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "currentColor" in svg
    assert "var(--hue-0)" in svg
    assert not re.search("#0[0-9a-f]{5}", svg)
    lines = [
        path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path") if "hue-0" in path.get("style", "")
    ]
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", lines[0])]
    assert heights[-1] > heights[0]  # a falling loss falls on the page, where y grows downwards


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
    assert brightness.shape == (10, 50)
    assert brightness[-1, -1] > 2 * brightness[0, -1]
    assert brightness[-1, -1] > 2 * brightness[-1, 0]
    assert decoded(spectrum_uri(np.full((5, 4), -np.inf, np.float32))).shape == (4, 5, 3)


def test_pyplot_and_its_global_figures_stay_out(tmp_path):
    code = (
        "import sys; from mmjax.reports.run import *; before = 'matplotlib' in sys.modules;"
        f"write_report({str(tmp_path)!r}, {EXPERIMENT!r}, [{{'step': 1, 'train/loss': 1.0}}], {SUMMARY!r}, []);"
        "assert not before and 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_figures_for_a_reader():
    values = (1234567, 0.123456, 12345.0, 3.0, 1e-5, True, "x", None, float("nan"))
    shown = ["1,234,567", "0.1235", "12,345", "3", "1e-05", "True", "x", "not finite", "not finite"]
    assert [number(value) for value in values] == shown
