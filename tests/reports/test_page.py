"""Every kind of page in a browser: nothing is wider than the page, and no text overflows its box."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launch import benchmark, compare, compare_profiles, plan, profile
from mmjax.evaluation.results import Results
from mmjax.evaluation.suite_result import Metric, SuiteResult
from mmjax.profiling.profile.profile import Kernel, Profile
from mmjax.reports.ablation import write_ablation_report
from mmjax.reports.gallery import Piece, write_gallery
from mmjax.reports.page import Card, Cell, Drawing, Key, Picture, Section, Table, read_section, write_page
from mmjax.reports.plots import confusion_svg, picture_uri
from tests.reports import test_ablation, test_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1300, 800)
WORD = "unbroken" * 40
# Shows each page in frames of both widths with everything unfolded, and says which elements are too narrow for what
# they hold, or lie outside the page.
CHECK = """
<script>
onload = () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    for (const each of page.querySelectorAll("details")) each.open = true;
    const width = page.documentElement.clientWidth;
    for (const each of page.querySelectorAll("body, body *")) {
      const box = each.getBoundingClientRect();
      const wide = each.scrollWidth > each.clientWidth + 1 || each.scrollHeight > each.clientHeight + 4;
      const inline = getComputedStyle(each).display == "inline";
      const overflows = each.clientWidth > 0 && !inline && each instanceof page.defaultView.HTMLElement && wide;
      if (overflows || (box.width > 0 && (box.right > width + 1 || box.left < -1)))
        found.push([frame.title, each.tagName, each.className, each.textContent.trim().slice(0, 60)].join(" "));
    }
  }
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(found);
};
</script>
"""


def too_narrow(pages: dict[str, str], folder: Path) -> list[str]:
    """What does not fit, of pages by their names."""
    frames = [
        f'<iframe title="{name} {width}" width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in WIDTHS
    ]
    path = folder / "frames.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{''.join(frames)}{CHECK}")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}"]
    dom = subprocess.run(
        [*words, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    found = re.search("<pre>(.*?)</pre>", dom, re.DOTALL)
    assert found, "the check did not run"
    return json.loads(html.unescape(found[1]))


def a_run(folder: Path) -> Path:
    long = {"step": 10, f"validation/{WORD}/accuracy": 0.5}
    lines = [*test_run.history(), long, long | {"step": 20}]
    errors = [{"id": WORD, "feature": "speech", "reason": f"cut short {WORD}"}]
    (folder / "data_errors.jsonl").write_text("".join(json.dumps(error) + "\n" for error in errors))
    return test_run.write(folder, lines, shown=test_run.examples(), stopped=f"the loss of {WORD} was not finite")


def an_evaluation(folder: Path) -> Path:
    figures = {f"label/{name}": Metric(0.123456789, 0.1, 0.2, 12345) for name in ("accuracy", WORD)}
    kinds = [f"class {index}" for index in range(12)]
    rows = [[kind, "1,234", "0.123", "0.456"] for kind in kinds]
    drawings = [confusion_svg(np.eye(12, dtype=int), kinds)]
    section = Section("label", WORD, [Table(["class", "examples", "recall", "precision"], rows)], drawings)
    results = Results(folder)
    for step in (10, 20):
        about = {"name": "toy", "fingerprint": "0123", "data": {"test": WORD}, "requests": ["standard"]}
        results.add(step, "test", {"standard": SuiteResult({}, figures, [section])}, **about)
    return results.page


def an_ablation(folder: Path) -> Path:
    names = ("Sum", "CrossAttention", "Concat/0.1", "a_long_name_of_a_fusion_of_somebody's_own")
    return write_ablation_report(folder, test_ablation.table(names, seeds=3))


def a_gallery(folder: Path) -> Path:
    pixels = np.zeros((64, 200, 3), np.uint8)
    pieces = {"image": [Piece(".png", b"", pixels)] * 9, "speech": [Piece(".wav", b"RIFF", pixels)] * 5}
    words = {"text": [Piece(words="a red circle"), Piece(words=WORD)]}
    write_gallery(
        folder, f"Generated {WORD}", {"fingerprint": "0123", WORD: WORD}, {"text": words["text"][1]}, pieces | words
    )
    return folder / "report.html"


def a_comparison(folder: Path) -> Path:
    """As `launch.evaluate compare` puts it together."""
    rows = [[name, "0.8123", "0.7991", "+0.0132 [−0.0020, +0.0301]", "0.123"] for name in ("label/accuracy", WORD)]
    table = Table(["figure", "runs/one@600", f"runs/{WORD}", "difference (95%)", "p, adjusted"], rows)
    uri = picture_uri(np.zeros((32, 32, 3), np.float32))
    cards = [Card(f"{WORD}: only one is right", [(uri, "image")], [("text", [(WORD, 0.5)])], [f"true: {WORD}"])] * 3
    sections = [Section("one and other", "They differ.", [table]), Section("label", cards=cards)]
    return write_page(folder / compare.PAGE, "Comparison of one and other", {"split": "test"}, sections)


def a_plan(folder: Path) -> Path:
    talk = {"kind": "all-gather", "axis": "fsdp", "crosses_slices": True, "bytes": 123456789, "count": 1234}
    talk |= {"overlaps": True, "path": f"mmjax/layers/{WORD}.py:12"}
    candidate = {"overrides": [f"mesh.{axis}=16" for axis in ("data", "fsdp", "tensor")], "estimated_to_fit": True}
    whole = {
        **{"experiment": "interactions", "topology": "v5e:16x16", "fingerprint": "0123", "fits": True, "chips": 256},
        **{"hbm_bytes": {"parameters": 2**33, "activations": 2**30, "peak": 2**33}, "hbm_limit_bytes": 2**34},
        **{"parameters": 12_345_678, "predicted_step_seconds": 0.123, "predicted_mfu": 0.43, "advice": "It fits."},
        **{"roofline_seconds": {"arithmetic": 0.1, "memory": 0.02}, "collectives": [talk] * 3, "rates": "peak"},
        **{"source_seconds": {f"mmjax/layers/{WORD}.py:12": 0.1}, "model_flops": 10**15, "step_flops": 10**15},
        **{"hardware_flops": 10**15, "candidates": [candidate] * 3},
    }
    plan._write_page(folder, whole)
    return folder / plan.PAGE


def a_profile(folder: Path) -> Path:
    stack = ("mmjax.model.Multimodal.loss", f"mmjax.{WORD}")
    kernel = Kernel("fusion.12", "fusion", 1e-3, 12.0, 1e9, 1e6, 0.5, "mmjax/layers/linear.py:12", WORD, "mlp", stack)
    found = object.__new__(Profile)
    found.__dict__.update(
        **{"name": "interactions", "machine": "cpu", "devices": 1, "step_seconds": [0.1], "kernels": [kernel] * 20},
        **{"busy": 0.1, "exposed": 0.0, "gaps": 0.0, "waited": 0.0, "compile": {"compiling": 1.0}, "recompiled": []},
        **{"model_flops": 10**9, "peak_flops": 1e11, "peak_bandwidth": 1e10, "memory": {"peak": 2**30}},
        **{"memory_timeline": SimpleNamespace(sizes=[1, 2, 3])},
    )
    whole = {"fingerprint": "0123", "memory_holders": [{"source": f"mmjax/layers/{WORD}.py:1", "bytes": 2**20}]}
    profile._write_page(folder, whole, found)
    return folder / profile.PAGE


def a_comparison_of_profiles(folder: Path) -> Path:
    """As `launch.profile compare` puts it together."""
    rows = [[name, "1,234.567", "1,234.567", "+0.000"] for name in ("encoders/a", WORD)]
    section = Section("By source", "", [Table(["source", "before, ms", "after, ms", "change, ms"], rows)])
    text = Section("The programs", text=f"-{WORD}\n+{WORD}")
    return write_page(folder / compare_profiles.PAGE, "Two profiles", {"ratio": 1.234}, [section, text])


def a_benchmark(folder: Path) -> Path:
    numbers = {"ratio": 0.9123, "low": 0.9, "high": 0.93, "seconds": (1.234, 1.345)}
    whole = {"name": "attention", "dtype": "bfloat16", "ratio": 0.9123, "pairs": 20, "versions": {"jax": WORD}}
    whole |= {"machine": {"processor": f"A processor {WORD}", "cores": 2}}
    benchmark._write_page(folder, whole, [SimpleNamespace(name=name, **numbers) for name in ("attention", WORD)])
    return folder / benchmark.PAGE


MAKERS = {
    "run": a_run,
    "evaluation": an_evaluation,
    "ablation": an_ablation,
    "gallery": a_gallery,
    "comparison": a_comparison,
    "plan": a_plan,
    "profile": a_profile,
    "comparison of profiles": a_comparison_of_profiles,
    "benchmark": a_benchmark,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    return {name: make(tmp_path_factory.mktemp("page")).read_text() for name, make in MAKERS.items()}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_everything_fits_and_what_does_not_is_found(pages, tmp_path):
    assert too_narrow(pages, tmp_path) == []
    # The check sees what is too wide.
    row = [f"row {index}" if index == 0 else "1,234,567.89" for index in range(40)]
    wide = write_page(tmp_path / "wide.html", "Wide", {}, [Section("", tables=[Table(row, [row])])]).read_text()
    word = write_page(tmp_path / "word.html", "Word", {}, [Section("", WORD)]).read_text()
    broken = word.replace('<p class="about">', '<p style="white-space: nowrap; overflow: hidden">')
    assert broken != word
    found = too_narrow({"table": wide, "hidden": broken, "fine": word}, tmp_path)
    for name in ("table", "hidden"):
        for width in WIDTHS:
            assert any(line.startswith(f"{name} {width} ") for line in found)
    assert not any(line.startswith("fine") for line in found)


def test_all_pages_look_alike_and_load_nothing(pages):
    styles = {text[text.index("<style>") : text.index("</style>")] for text in pages.values()}
    assert len(styles) == 1
    for text in pages.values():
        page = test_run.Page(text)
        assert all(reference.startswith("data:") for reference in page.references)
        assert "script" not in page.tags
        assert "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'" in text


def test_figures_are_aligned_and_texts_are_not(tmp_path):
    rows = [
        ["a", "1,234", "−0.3 %", "12 ms", "3 min 2 s", "a word", Cell("0.5", "[0.4, 0.6]")],
        ["b", "", "–", "2 s", "1 h", "1 h", "1 h"],
    ]
    text = write_page(tmp_path / "page.html", "", {}, [Section("", tables=[Table(list("nabcdef"), rows)])]).read_text()
    assert re.findall('<th scope="col" class="([^"]*)">([a-z])', text) == [
        ("", "n"),
        *((name, column) for name, column in zip(["figure"] * 4 + ["", "figure"], "abcdef", strict=True)),
    ]


def test_facts_that_are_empty_are_left_out(tmp_path):
    text = write_page(tmp_path / "page.html", "T", {"none": "", "zero": 0, "size": 12345}, []).read_text()
    assert re.findall("<dt>(.*?)</dt> <dd>(.*?)</dd>", text) == [("zero", "0"), ("size", "12,345")]


def test_sections_come_back_from_json():
    table = Table(["a", "b"], [["x", Cell("0.5", "note", "better", 0.25)]], "Title", True)
    card = Card(
        "c", [Picture("data:,", "picture", "data:,", "right")], [("w", [("word", 0.5)])], ["line"], "n", [table]
    )
    drawing = Drawing("<svg/>", "plot", [Key("line", 1, (5.0, 2.0), "0.5")])
    section = Section("s", "about", [table], ["<svg/>", drawing], [card], "text", [("term", "meaning")], True, True)
    text = json.dumps(section, default=lambda each: each.__dict__)
    back = read_section(json.loads(text))
    assert json.dumps(back, default=lambda each: each.__dict__) == text
    assert isinstance(back.tables[0].rows[0][1], Cell)
