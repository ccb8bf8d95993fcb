"""`launch.prepare`: what it asks sources to build, what it prints, and how it refuses."""

import json
import re
from pathlib import Path

import pytest

from launch import prepare
from mmjax.data.formats.array_record import ArrayRecord
from mmjax.data.formats.recognise import recognise
from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.scenes import Scenes
from mmjax.errors import UserError


@pytest.fixture
def asked(monkeypatch) -> list:
    """Sources record that they are to be prepared, and do not do it."""
    asked = []

    def record(self, data_dir: str, manual_dir: str | None = None) -> Path:
        asked.append((self, data_dir, manual_dir))
        return Path(data_dir, "av_digits", f"{self.pairing}_{self.noise}")

    monkeypatch.setattr(AvDigits, "prepare", record)
    return asked


def test_choices_that_are_not_made_are_all_built(asked, capsys):
    assert prepare.main(["av_digits", "manual_dir=../raw", "data_dir=/somewhere"]) == 0
    assert capsys.readouterr().out == "/somewhere/av_digits\n"
    assert {(source.pairing, source.noise) for source, _, _ in asked} == {
        (pairing, noise) for pairing in ("recording_disjoint", "speaker_disjoint") for noise in ("noisy", "clean")
    }
    assert {rest for _, *rest in map(tuple, asked) for rest in [tuple(rest)]} == {("/somewhere", "../raw")}


def test_choices_that_are_made_are_kept(asked, capsys):
    assert prepare.main(["av_digits", "noise=clean", "pairing=speaker_disjoint", "data_dir=/somewhere"]) == 0
    assert asked == [(AvDigits(pairing="speaker_disjoint", noise="clean"), "/somewhere", None)]
    assert capsys.readouterr().out == "/somewhere/av_digits/speaker_disjoint_clean\n"


def test_numbers_reach_the_source(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(Scenes, "prepare", lambda self, data_dir, manual_dir=None: seen.append(self) or Path(data_dir))
    assert prepare.main(["scenes", "seed=7", "train=20", "speech=false", f"data_dir={tmp_path}"]) == 0
    assert seen == [Scenes(seed=7, train=20, speech=False)]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "av_digits, scenes|no source is named"),
        (["av_digit"], "av_digit.*av_digits"),
        (["av_digits", "nose=noisy"], "nose.*noise.*pairing"),
        (["av_digits", "noise=nosy"], "noise=nosy.*noisy.*clean"),
        (["scenes", "train=many"], "train=many.*int"),
        (["scenes", "train=0"], "at least 1 example"),
        (["scenes", "manual_dir=x"], "leave out manual_dir"),
    ],
)
def test_wrong_requests_are_one_line_and_2(words, said, capsys, tmp_path):
    assert prepare.main([*words, f"data_dir={tmp_path}"] if words else words) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert re.search(said, errors[0])
    assert not list(tmp_path.iterdir())


def test_interrupted(monkeypatch, capsys):
    def interrupt(self, data_dir, manual_dir=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(AvDigits, "prepare", interrupt)
    assert prepare.main(["av_digits"]) == 75


def test_help_names_sources_and_keys(capsys):
    assert prepare.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "av_digits" in out
    assert "scenes" in out
    assert prepare.main(["av_digits", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("manual_dir", "data_dir", "~/.cache/mmjax", "recording_disjoint", "clean"):
        assert word in out


def test_user_errors_are_not_tracebacks(monkeypatch, capsys):
    def refuse(self, data_dir, manual_dir=None):
        raise UserError("the disk is full: delete something")

    monkeypatch.setattr(AvDigits, "prepare", refuse)
    assert prepare.main(["av_digits"]) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_tfds_is_prepared_by_name(tmp_path, capsys):
    """As the message of a data set that is not prepared says."""
    assert prepare.main(["tfds"]) == 2
    assert capsys.readouterr().err == "error: name is not given: set name=text\n"
    assert prepare.main(["tfds", "name=no_such_set", f"data_dir={tmp_path}"]) == 2
    assert "source.name=no_such_set is not a data set of TFDS" in capsys.readouterr().err


FOLD = "source.key=other source.split=SplitByColumn source.split.column=fold source.split.train=1 source.split.test=2"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {"train": ["a", "d"], "validation": ["b"], "test": ["c"]}),
        (f"{FOLD} source.split.validation=None", {"train": ["w", "y"], "test": ["x", "z"]}),
    ],
)
def test_a_conversion_has_the_names_and_splits_that_a_new_experiment_would_have(words, found, tmp_path, capsys):
    rows = zip("abcd", "wxyz", ("train", "dev", "test", "train"), "1212", strict=True)
    columns = ("id", "other", "split", "fold")
    (tmp_path / "all.jsonl").write_text(
        "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    )
    path, data_dir, out = str(tmp_path / "all.jsonl"), str(tmp_path / "cache"), str(tmp_path / "out")
    assert prepare.main(["convert", path, f"out={out}", f"data_dir={data_dir}", *words.split()]) == 0
    assert capsys.readouterr().out == f"{out}\n"

    def names(source):
        records = {split: source.open(data_dir, split) for split in source.splits}
        return {split: [each.id(index) for index in range(len(each))] for split, each in records.items()}

    assert names(ArrayRecord(path=out)) == found
    if not words:
        assert names(recognise(path, data_dir)) == found
