"""Benchmarks: implementations that measure in turns, and their ratios."""

import json
import os
import subprocess
import sys

import pytest

from launch import benchmark
from launch.benchmarks import runner
from tests.system.conftest import ROOT

ABOUT = runner.Ratio("ours over theirs", "ours", "peer", "step")


def test_a_ratio_is_the_median_of_pairs():
    """Not the ratio of medians: what slows the machine slows both of a pair."""
    found = runner._result(ABOUT, [2.0, 30.0, 1.0], [4.0, 40.0, 1.0])
    assert (found.ratio, found.low, found.high, found.pairs) == (0.75, 0.5, 1.0, 3)
    assert found.seconds == (2.0, 4.0)


@pytest.mark.parametrize("name", benchmark.NAMES)
def test_every_ratio_is_of_implementations(name):
    found = runner.load(name)
    assert {who for ratio in found.ratios for who in (ratio.ours, ratio.peer)} == set(found.implementations)


def test_implementations_take_turns(monkeypatch, tmp_path, capsys):
    """With implementations that tell whose turn it is instead of measuring."""
    turns = []

    class Worker:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            turns.append(f"{self.name} ends")

    def ask(worker, implementation):
        turns.append(implementation)
        return {"step": {"ours": 1.0, "peer": 2.0}[implementation]}

    named = runner.Benchmark("nothing", {"ours": None, "peer": None}, (ABOUT,))
    monkeypatch.setattr(runner, "load", lambda name: named)
    monkeypatch.setattr(runner, "_worker", lambda name, implementation, dtype: Worker(implementation))
    monkeypatch.setattr(runner, "_ask", ask)
    assert benchmark.main(["step", "pairs=2", f"out={tmp_path}"]) == 0
    assert turns == ["peer", "ours", "ours", "peer", "peer", "ours", "peer ends", "ours ends"]
    captured = capsys.readouterr()
    assert "ours over theirs: 0.500 [0.500, 0.500] of 2 pairs" in captured.err
    assert captured.out == f"{tmp_path / 'benchmark.json'}\n"
    whole = json.loads((tmp_path / "benchmark.json").read_text())
    assert (whole["name"], whole["ratio"], whole["low"], whole["high"], whole["pairs"]) == ("step", 0.5, 0.5, 0.5, 2)
    assert whole["versions"]["jax"]
    assert whole["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert "ours over theirs" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_implementation_measures_as_often_as_it_is_asked():
    """The loader of mmjax on its files, in a process of its own."""
    with runner._worker("input", "mmjax", "float32") as process:
        found = [runner._ask(process, "mmjax") for _ in range(2)]
    assert all(set(each) == {"batch"} and 0 < each["batch"] < 10 for each in found)


def test_what_is_missing_is_named(tmp_path, capsys, monkeypatch):
    """A peer that cannot be imported, as in most places."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    assert benchmark.main(["checkpoint", f"out={tmp_path / 'benchmark'}"]) == 2
    assert not (tmp_path / "benchmark").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: safetensors needs torch: pip install -e '.[bench]' brings it"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["steps"], "unknown benchmark steps; the nearest is step"),
        (["step", "pairs=0"], "pairs=0: must be at least 1"),
        (["step", "dtype=float16"], "float16"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, told, capsys):
    assert benchmark.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


PAGES = """
import os, sys
from launch.huge_pages import prefer_huge_pages

prefer_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:])
"""


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (0, 0)])
def test_a_process_begins_again_with_huge_pages(given, expected):
    tunable = "glibc.malloc.hugetlb="
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if given is not None:
        environment["GLIBC_TUNABLES"] = f"{tunable}{given}"
    words = [sys.executable, "-c", PAGES, "one word", "another"]
    output = subprocess.check_output(words, cwd=ROOT, env=environment, text=True)
    assert output == f"{tunable}{expected} ['one word', 'another']\n"
