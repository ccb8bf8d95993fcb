"""Experiments written for data of one's own, and the look at the data before: from the files to a trained run."""

import csv
import json
import random
from pathlib import Path

import pytest

from launch import command_line, inspect, new
from launch.command_line import load_experiment
from mmjax.training import loop
from tests.data.formats import examples as written

SMALL = ("model.width=32", "train.steps=2", "train.batch_size=8", "train.evaluate_every=2", "checkpoint.every=2")


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory) -> Path:
    """Emoji with a JSONL, spoken digits in folders, and a table of numbers."""
    root = tmp_path_factory.mktemp("own")
    examples = written.real_examples(shared_data, 120)
    written.write_json_lines(root / "emoji", examples)
    with (shared_data / "fsdd/metadata.csv").open() as file:
        for row in list(csv.DictReader(file))[::25]:
            below = root / "digits" / ("test" if row["official_split"] == "test" else "train") / row["file"][0]
            below.mkdir(parents=True, exist_ok=True)
            (below / row["file"]).write_bytes((shared_data / "fsdd/recordings" / row["file"]).read_bytes())
    rng = random.Random(0)
    lines = ["a,b,kind,y"]
    for _ in range(200):
        a, b = rng.gauss(100, 20), rng.gauss(0, 0.01)
        lines.append(f"{a:.3f},{b:.5f},{'high' if a > 100 else 'low'},{2 * a + 1000 * b:.3f}")
    (root / "numbers.csv").write_text("\n".join(lines) + "\n")
    return root


def write(folder: Path, data: str, name: str, *keys: str) -> Path:
    """The experiment that `new` writes."""
    path = folder / f"{name}.py"
    assert new.main([str(folder / data), f"out={path}", f"data_dir={folder / 'cache'}", *keys]) == 0
    return path


@pytest.mark.parametrize(
    ("data", "keys", "metric"),
    [
        ("emoji", ("task=retrieve",), "test/match/loss"),
        ("digits", (), "test/label/accuracy"),
        ("numbers.csv", ("target=y",), "test/y/absolute_error"),
    ],
)
def test_what_new_writes_trains_without_an_edit(folder, data, keys, metric):
    name = f"trained_{Path(data).stem}"
    path = write(folder, data, name, *keys)
    arguments = [str(path), f"run_dir={folder / 'runs' / name}", f"data_dir={folder / 'cache'}", *SMALL]
    assert command_line.main(loop.train, "", arguments) == 0
    assert metric in json.loads((folder / "runs" / name / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("data", "keys", "inputs", "output"),
    [
        ("emoji", (), {"image", "audio", "text", "label"}, ("Classify", "label")),
        ("emoji", ("target=speaker",), {"image", "audio", "text", "speaker"}, ("Classify", "speaker")),
        ("emoji", ("task=caption",), {"image", "audio", "text"}, ("TextDecoder", "text")),
        ("emoji", ("task=transcribe",), {"image", "audio", "text"}, ("TextDecoder", "text")),
        ("emoji", ("task=generate",), {"image", "text"}, ("Vae", "image")),
        ("emoji", ("task=generate", "target=audio"), {"audio", "text"}, ("SpeechVae", "audio")),
        ("numbers.csv", (), {"numbers", "y"}, ("Regress", "y")),
        ("numbers.csv", ("task=classify",), {"numbers", "kind"}, ("Classify", "kind")),
    ],
)
def test_every_task_reads_and_makes_what_it_says(folder, data, keys, inputs, output):
    name = f"task_{abs(hash((data, keys)))}"
    experiment = load_experiment(str(write(folder, data, name, *keys)))
    assert set(experiment.data.inputs) == inputs
    (made,) = experiment.model.outputs.values()
    assert made is not None
    assert (type(made).__name__, made.target_feature) == output
    assert set(experiment.model.encoders) <= inputs


def test_numbers_are_scaled_by_the_training_split(folder):
    experiment = load_experiment(str(write(folder, "numbers.csv", "scaled", "target=y")))
    numbers = experiment.data.inputs["numbers"]
    assert numbers.fields == ("a", "b")
    assert abs(numbers.mean[0] - 100) < 5
    assert abs(numbers.deviation[1] - 0.01) < 0.003


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("task=regress",), "task=regress needs a field that is number or vector; the fields are image (image)"),
        (("task=classify", "target=text"), "target=text cannot be what task=classify predicts"),
    ],
)
def test_what_cannot_be_written_is_told_in_a_line(folder, capsys, keys, said):
    words = [str(folder / "emoji"), f"out={folder / 'never.py'}", f"data_dir={folder / 'cache'}", *keys]
    assert new.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "never.py").exists()


def test_help_lists_the_tasks(folder, capsys):
    assert new.main([str(folder / "emoji"), "--help", "task"]) == 0
    assert "choices of task:\n  classify | retrieve | " in capsys.readouterr().out


def test_an_experiment_is_a_python_file(folder, capsys):
    assert new.main([str(folder / "emoji"), f"out={folder / 'thing.txt'}"]) == 2
    assert "name a Python file" in capsys.readouterr().err


def test_an_experiment_that_is_there_is_not_overwritten(folder, capsys):
    path = write(folder, "numbers.csv", "mine", "target=y")
    path.write_text("# changed by hand\n")
    assert new.main([str(folder / "numbers.csv"), f"out={path}"]) == 2
    assert "is there: name another file by out" in capsys.readouterr().err
    assert path.read_text() == "# changed by hand\n"


def test_a_look_at_data_prints_fields_and_writes_a_page(folder, capsys, tmp_path):
    words = [str(folder / "emoji"), f"out={tmp_path / 'look'}", f"data_dir={folder / 'cache'}"]
    assert inspect.main(words) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "look/report.html")
    for word in ("is read as Manifest", "pixels high", "speaker", "seconds"):
        assert word in err
    page = (tmp_path / "look/report.html").read_text()
    assert "data:image/png" in page
    assert "data:audio/wav" in page
    assert inspect.main([str(folder / "nothing")]) == 2
    elsewhere = [inspect.Request(path=path).out for path in ("one/emoji", "other/emoji", "./one/../one/emoji")]
    assert elsewhere[0] != elsewhere[1]
    assert elsewhere[0] == elsewhere[2]
    assert elsewhere[0].startswith("inspections/emoji-")
    assert "there is no such file or folder" in capsys.readouterr().err
