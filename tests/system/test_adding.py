"""The example of each page about adding a part: saved under its name, it trains by the page's own command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, environment

FOLDER = ROOT / "docs" / "adding"
PAGES = sorted(FOLDER.glob("*.md"))
SHORT = (
    *("train.steps=2", "train.batch_size=8", "train.log_every=1", "data.source.train=32", "mesh.data=1"),
    *("model.unroll=false", "data.workers=0"),
)
FEW = ("data.source.validation=8", "data.source.test=8")


def example(page: Path) -> tuple[str, str]:
    """The file's name and content."""
    text = page.read_text()
    (name,) = re.findall(r"`(\w+\.py)`:\n\n```python", text)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return name, code


def commands(page: Path, name: str) -> list[list[str]]:
    lines = [line.split() for line in page.read_text().splitlines() if line.startswith(f"mmjax {name} ")]
    return [words[2:] for words in lines]


def test_there_is_a_page_for_every_kind_of_part():
    names = {page.stem for page in PAGES}
    assert {"encoder", "feature", "fusion", "head", "generator", "source", "input", "metric", "suite"} <= names
    for page in (ROOT / "README.md", ROOT / "docs" / "adding.md"):
        linked = {Path(target).stem for target in re.findall(r"\]\(([\w/]+\.md)\)", page.read_text())}
        assert names <= linked, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_trains(page: Path, data_dir: Path, tmp_path: Path):
    for name, code in map(example, PAGES):
        (tmp_path / name).write_text(code)
    subject, *words = commands(page, "train")[0]
    few = () if subject.endswith(".py") else FEW
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", subject, *words, *SHORT, *few, f"data_dir={data_dir}"],
        cwd=tmp_path,
        env=environment(1),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text())
    assert summary["step"] == 2
    outputs = [word.split("=")[0].split(".")[2] for word in words if re.match(r"model\.outputs\.\w+=", word)]
    for output in outputs or ["label"]:
        assert summary["metrics"][f"test/{output}/loss"] >= 0
    for evaluation in commands(page, "evaluate"):
        words = ["launch.evaluate", *evaluation]
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment(1),
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        metrics = json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text())["metrics"]
        if page.stem == "suite":
            assert metrics["test/label/accuracy"]["value"] <= metrics["test/label/top_3"]["value"] <= 1
        if page.stem == "feature":
            assert {"test/label/shapley/a", "test/label/shapley/points"} <= metrics.keys()
    if page.stem == "metric":
        assert 0 <= summary["metrics"]["test/label/accuracy"] <= summary["metrics"]["test/label/top_2"] <= 1
