"""The command of exports: wrong requests are one line and leave nothing, and a folder appears whole or not at all."""

import json
import shutil

import pytest

from launch import export
from mmjax.errors import UserError
from mmjax.inference import load
from tests.untrained import WORDS, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "drawn", tmp_path_factory.mktemp("data"), *WORDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=pickle"], "format=pickle: expected "),
        (["platforms=cpu,metal"], "platforms=cpu,metal: expected "),
        (["what=embed,sing"], "what=embed,sing: expected "),
        (["what=embed,embed"], "what must name something, and nothing twice"),
        (["format=()"], "format must name something, and nothing twice"),
        (["step=2"], "there is no whole checkpoint of step 2"),
        (["quantize=int4"], "quantize=int4: expected "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(run_dir, tmp_path, capsys, words, message):
    assert export.main([str(run_dir), f"out={tmp_path / 'out'}", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not [*tmp_path.iterdir()]


def test_what_is_no_run_is_one_line(run_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert export.main([str(tmp_path / "empty"), f"out={tmp_path / 'out'}"]) == 2
    assert "is not a run directory: it has no experiment.json" in capsys.readouterr().err
    begun = shutil.copytree(run_dir, tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoints"))
    assert export.main([str(begun), f"out={tmp_path / 'out'}"]) == 2
    assert "has no checkpoint; a run saves its first after checkpoint.every steps" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "begun"}


def test_a_missing_package_names_the_extra(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmjax.export.onnx.importlib.util.find_spec", lambda name: None)
    assert export.main([str(run_dir), f"out={tmp_path / 'out'}", "format=onnx"]) == 2
    assert 'format=onnx needs jax2onnx and onnxruntime: pip install "mmjax[onnx]"' in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_it_takes_the_place_of_an_earlier_export_and_of_nothing_else(run_dir, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [str(run_dir), f"out={out}", "format=safetensors"]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert export.main(words) == 2
    assert "holds mine.txt, not of an export; choose a new or an empty folder" in capsys.readouterr().err
    (out / "mine.txt").rename(tmp_path / "mine.txt")
    assert export.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "export.json")]
    assert not [*out.glob("*.stablehlo")]
    (tmp_path / "mine.txt").rename(out / "tokenizers" / "mine.txt")
    assert export.main(words) == 2
    assert "holds mine.txt, not of an export" in capsys.readouterr().err
    (out / "tokenizers" / "mine.txt").unlink()
    (out / "README.md").unlink()
    assert export.main([*words, "license=mit"]) == 0
    assert json.loads((out / "export.json").read_text())["license"] == "mit"
    load(out)

    def fail(*arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr("mmjax.export.folder.write_card", fail)
    assert export.main([*words, "license=bsd"]) == 2
    assert json.loads((out / "export.json").read_text())["license"] == "mit"
    assert [*tmp_path.iterdir()] == [out]
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "file").touch()
    for name, says in (("link", "is a link; give the folder itself"), ("file", "Not a directory; choose another")):
        assert export.main([str(run_dir), f"out={tmp_path / name}"]) == 2
        assert says in capsys.readouterr().err
    assert export.main([str(out), f"out={tmp_path / 'second'}"]) == 2
    assert "is an export already; give the run directory that it came from" in capsys.readouterr().err
