"""Bad data is counted, named and absent; what was saved stays as it is whatever a run directory or a disk is like."""

import gc
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from launch import command_line
from mmjax.config import experiment_file
from mmjax.data.batching.host_batch import chain_digest
from mmjax.data.loader import Loader
from mmjax.data.sources.base import Recording
from mmjax.training.run_dir import RunDir
from tests.system.disk import Disk, PretendDisk
from tests.system.picture_run import STEPS, go, replace, settings, sound

WARM = "optimizer.schedule.warmup=2"


def truncated_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(), 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()[:-1000]


BAD = {
    ("train", 3): ("speech", truncated_wav(), "the WAV is truncated: 7044 bytes of 8044"),
    ("train", 17): ("image", b"\x89PNG\r\n\x1a\nand then none", "the PNG ends early"),
    ("train", 18): ("image", b"no picture at all", "17 bytes are not an image that OpenCV can decode"),
    ("train", 40): ("text", " \n", "the text is empty"),
    ("train", 41): (
        "speech",
        Recording(np.append(sound(), np.float32("nan")), 8000),
        "1 of 4001 samples are not finite",
    ),
    ("train", 95): ("shape", [0, 77], "label 77 is out of range: there are "),
    ("validation", 8): ("image", b"", "the image is empty"),
    ("validation", 2): ("speech", Recording(np.zeros(0, np.int16), 8000), "the recording is empty"),
    ("test", 6): ("shape", [-1], "label -1 is out of range: there are "),
}


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    """Every scene has a sound, also where nothing is bad."""
    replace(monkeypatch, {})


def error_line(capsys) -> str:
    """The one line that says what was wrong."""
    gc.collect()  # what nobody asked after is told of when it goes
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def errors_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "data_errors.jsonl").read_text().splitlines()]


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def bad_run(data, tmp_path_factory) -> Path:
    """A whole run over the bad data."""
    run_dir = tmp_path_factory.mktemp("runs") / "bad"
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace(monkeypatch, BAD)
        assert go(run_dir, data) == 0
    return run_dir


def loaders(data_word, split, seed):
    experiment = command_line.resolve(command_line.load_experiment("scenes"), settings(data_word))
    bound = experiment.data.fit_tokenizers(experiment.data_dir)
    return Loader(bound, experiment.data_dir, split, 16, seed=seed)


def test_every_bad_value_is_named(bad_run, data, monkeypatch):
    replace(monkeypatch, {})
    places = {id: step for step in range(STEPS) for id in loaders(data, "train", 0).ids(step)}
    # Validation is read after 4 steps and after the last: its errors are said once.
    after = {"validation": 4, "test": STEPS}
    found = errors_of(bad_run)
    assert all(list(error) == ["step", "split", "index", "id", "feature", "reason"] for error in found)
    assert [(e["split"], e["index"]) for e in found].count(("validation", 8)) == 1
    assert {(e["split"], e["index"]): (e["feature"], e["id"], e["step"]) for e in found} == {
        (split, index): (field, f"{split}/{index}", after.get(split, places.get(f"{split}/{index}")))
        for (split, index), (field, _, _) in BAD.items()
    }
    assert len(found) == len(BAD)
    for error in found:
        assert error["reason"].startswith(BAD[error["split"], error["index"]][2])
    assert "the WAV is truncated" in (bad_run / "report.html").read_text()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_value_is_absent_and_changes_nothing_else(data, monkeypatch, split):
    seed = 0 if split == "train" else None
    with monkeypatch.context() as context:
        replace(context, {})
        good = [loaders(data, split, seed).batch(step) for step in range(STEPS if seed == 0 else 1)]
    replace(monkeypatch, BAD)
    bad = [loaders(data, split, seed).batch(step) for step in range(len(good))]
    assert [host.ids for host in bad] == [host.ids for host in good]
    for one, other in zip(good, bad, strict=True):
        wrong = {(error.feature, other.ids.index(error.id)) for error in other.errors}
        for name in one.batch.present:
            for row in range(16):
                kept = (name, row) not in wrong
                assert other.batch.present[name][row] == (one.batch.present[name][row] and kept)
                for part in (field for field in ("values", "mask") if name in getattr(one.batch, field)):
                    expected = getattr(one.batch, part)[name][row]
                    np.testing.assert_array_equal(getattr(other.batch, part)[name][row], expected if kept else 0)


def test_a_run_with_bad_values_is_the_run_without_these_values(bad_run, data, tmp_path, monkeypatch):
    replace(monkeypatch, {place: (field, None) for place, (field, _, _) in BAD.items()})
    assert go(tmp_path / "absent", data) == 0
    absent, bad = summary_of(tmp_path / "absent"), summary_of(bad_run)
    assert not (tmp_path / "absent" / "data_errors.jsonl").exists()
    for key in ("parameters_digest", "examples_digest", "metrics"):
        assert bad[key] == absent[key]
    digest = ""
    for step in range(STEPS):
        digest = chain_digest(digest, loaders(data, "train", 0).ids(step))
    assert bad["examples_digest"] == digest


@pytest.mark.parametrize(("split", "step"), [("train", 0), ("validation", 4)])
def test_too_much_bad_data_ends_the_run(data, tmp_path, capsys, monkeypatch, split, step):
    replace(monkeypatch, {(split, index): ("image", b"no picture") for index in range(1, 96)})
    assert go(tmp_path / "run", data, "data.max_bad_share=0.03") == 2
    line = error_line(capsys)
    assert "'image' cannot be used" in line
    assert f"of {split}/" in line
    assert "raise data.max_bad_share, which is 0.03" in line
    errors = errors_of(tmp_path / "run")
    first = loaders(data, split, 0 if split == "train" else None).ids(0)
    assert {error["id"] for error in errors} == {*first} - {f"{split}/0", ""}
    assert {(error["step"], error["split"], error["reason"]) for error in errors} == {
        (step, split, "10 bytes are not an image that OpenCV can decode")
    }
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_an_input_cannot_read_shows_before_compiling(data, tmp_path, capsys, monkeypatch, split):
    replace(monkeypatch, {(split, index): ("shape", [0.5]) for index in range(96)})
    assert go(tmp_path / "run", data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"data.inputs.shape cannot read the field shape of {split}/0 in the split {split}: labels must be integers"
        in line
    )
    assert "data.inputs.shape.field" in line
    assert not (tmp_path / "run").exists()


def test_a_loss_without_a_finite_value_ends_the_run_with_a_report(data, tmp_path, capsys, monkeypatch):
    replace(monkeypatch, {})
    run_dir = tmp_path / "run"
    assert go(run_dir, data, WARM, "optimizer.learning_rate=1e30", "train.stop_after_skipped=3") == 1
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    bad = [line["step"] for line in lines if line["train/loss"] is None]
    assert bad == list(range(bad[0], bad[0] + 3))
    line = error_line(capsys)
    assert f"steps {bad[0]} to {bad[-1]} were not finite" in line
    report = (run_dir / "report.html").read_text()
    assert f"steps {bad[0]} to {bad[-1]} were not finite" in report
    assert not (run_dir / "summary.json").exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_a_run_directory_of_another_experiment_is_left_alone(bad_run, data, capsys):
    before = contents(bad_run)
    assert go(bad_run, data, "seed=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "belongs to another experiment (seed: 0 -> 3); set another run_dir, or fresh=true" in line
    assert contents(bad_run) == before


@pytest.mark.usefixtures("nothing_compiles")
def test_a_damaged_experiment_json_is_left_alone(bad_run, data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(bad_run, run_dir)
    file = run_dir / experiment_file.FILE
    file.write_bytes(file.read_bytes()[:-40])
    before = contents(run_dir)
    assert go(run_dir, data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "experiment.json is not valid JSON" in line
    assert contents(run_dir) == before


@pytest.fixture
def disk(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount") and ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path]
    if not mount or subprocess.run(mount, capture_output=True).returncode:
        yield PretendDisk(path, monkeypatch)
        return
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.usefixtures("nothing_compiles")
def test_a_full_disk_is_one_line(data, disk, capsys):
    disk.fill()
    assert go(disk.path / "run", data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {disk.path / 'run'}" in line
    assert "No space left on device" in line


@pytest.mark.usefixtures("nothing_compiles")
def test_a_read_only_directory_is_left_alone(bad_run, data, disk, capsys):
    shutil.copytree(bad_run, disk.path / "run")
    before = contents(disk.path)
    disk.protect()
    assert go(disk.path / "run", data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {disk.path / 'run'}" in line
    assert "Read-only file system" in line
    assert contents(disk.path) == before


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(bad_run, data, disk, capsys, monkeypatch):
    run_dir = disk.path / "run"
    replace(monkeypatch, BAD)
    record_batch = RunDir.record_batch

    def record(self, step, host):
        record_batch(self, step, host)
        if step == 4:
            self.checkpoints.wait()
            disk.fill()

    with monkeypatch.context() as context:
        context.setattr(RunDir, "record_batch", record)
        assert go(run_dir, data) == 2
    line = error_line(capsys)
    assert str(run_dir) in line
    assert "No space left on device" in line or "disk is full" in line
    disk.free()
    assert go(run_dir, data) == 0
    assert f"resuming {run_dir} at step 4" in capsys.readouterr().err
    resumed, whole = summary_of(run_dir), summary_of(bad_run)
    for key in ("parameters_digest", "examples_digest", "metrics"):
        assert resumed[key] == whole[key]
    assert errors_of(run_dir) == errors_of(bad_run)
