"""Bad data is counted, named and absent; a wrong request is one line, and nothing that was there changes."""

import gc
import io
import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from launch import command_line
from launch.train import train
from mmjax.config import experiment_file
from mmjax.data.loader import Loader, chain_digest
from mmjax.data.sources.base import Recording
from mmjax.data.sources.scenes import SceneRecords
from mmjax.training import run_group, train_program
from mmjax.training.run_dir import RunDir
from tests.system.conftest import ROOT, TINY, command, environment
from tests.system.disk import Disk, PretendDisk

STEPS = 6  # of 16: one epoch of 96
# Everything is read and only the picture is modelled, which compiles sooner.
KEYS = dict(
    word.split("=") for word in TINY if not word.startswith(("data.inputs", "model.encoders.text", "model.outputs"))
)
KEYS |= {
    f"model.outputs.{name}": "None" for name in ("colour", "size", "count", "position", "image_text", "speech_text")
}
KEYS |= {"model.encoders.text": "None", "model.fusion": "Concat", "model.encoders.image.heads": "4", "mesh.data": "1"}
KEYS |= {"train.steps": f"{STEPS}", "train.evaluate_every": "4", "checkpoint.every": "2", "data.max_bad_share": "0.5"}


def settings(*words: object) -> list[str]:
    """The key=value words of a small run, those given taking over."""
    return [f"{key}={value}" for key, value in (KEYS | dict(str(word).split("=") for word in words)).items()]


WARM = "optimizer.schedule.warmup=2"


def sound() -> np.ndarray:
    return np.sin(np.arange(4000, dtype=np.float32) / 5)


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


def replace(monkeypatch, fields):
    """Gives every scene a sound and some examples another field: {(split, index): (field, value, ...)}."""
    read = SceneRecords.__getitem__

    def changed(self, index):
        example = read(self, index) | {"speech": Recording(sound(), 8000)}
        found = fields.get((self._split, index))
        return example if found is None else example | {found[0]: found[1]}

    monkeypatch.setattr(SceneRecords, "__getitem__", changed)


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    """Every scene has a sound, also where nothing is bad."""
    replace(monkeypatch, {})


def go(run_dir, *words) -> int:
    return command_line.main(train, "", ["scenes", *settings(*words, f"run_dir={run_dir}")])


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
def data(tmp_path_factory):
    """A data_dir with a compilation cache of its own: the bad texts must not train the tokenizer of other tests."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    yield f"data_dir={tmp_path_factory.mktemp('data')}"
    for name, value in before.items():
        jax.config.update(name, value)


CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(scope="module")
def bad_run(data, tmp_path_factory) -> Path:
    """A whole run over the bad data."""
    run_dir = tmp_path_factory.mktemp("runs") / "bad"
    with pytest.MonkeyPatch.context() as monkeypatch:
        replace(monkeypatch, BAD)
        assert go(run_dir, data) == 0
    return run_dir


@pytest.fixture
def nothing_compiles(monkeypatch):
    for module in (run_group, train_program):
        monkeypatch.setattr(module, "jit_once", lambda function: pytest.fail("it came to compiling"))


# Bad data


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


# Wrong requests


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batch_size=18", "mesh.data=4"], "a batch of 18 cannot be split evenly over 4 parts of the mesh"),
        (["train.accumulate=8", "mesh.data=4"], "a batch of 2 cannot be split evenly over 4 parts of the mesh"),
        (["mesh.tensor=8", "rules=fsdp_tensor"], "mesh.tensor=8 does not divide dimension heads=4"),
        (["mesh.fsdp=64"], "mesh.fsdp=64 needs 64 devices, but there are 8"),
        (["mesh.data=-1", "mesh.fsdp=3"], "mesh.fsdp=3 does not divide the 8 devices"),
        (["mesh.tensor=2"], "mesh.tensor=2 but rules=fsdp shards nothing over it"),
        (["rules=none"], "rules=none"),
        (["trian.steps=3"], "unknown key trian.steps; the nearest is train.steps"),
        (["train.evaluate_evry=3"], "unknown key train.evaluate_evry; the nearest is train.evaluate_every"),
        (["seed=some"], "seed=some: expected int"),
        (["train.steps=0"], "train.steps=0: must be at least 1"),
        (["model.encoders.smell=ViT"], "model.encoders.smell has no data.inputs.smell to read"),
        (["train.initialize=Initialize", "train.initialize.run_dir=no/run"], "run_dir=no/run has no checkpoint"),
        (["seed=-1"], "seed=-1: must not be negative"),
        ([f"train.steps={10**23}"], f"train.steps={10**23}: must lie between -2147483647 and 2147483647"),
        ([f"train.batch_size={2**31 - 1}"], "train.batch_size=2147483647: must be at most 1048576"),
        ([f"data.source.validation={2**31 - 1}"], "at most 65536 examples of validation and of test"),
        ([f"model.encoders.image.depth={2**63}"], "model.encoders.image.depth=9223372036854775808: must lie between"),
        ([f"model.encoders.image.depth={2**31 - 1}"], "model.encoders.image: depth=2147483647 must lie between"),
        (["model.encoders.image.depth=0"], "model.encoders.image: depth=0 must lie between 1 and 1000"),
        (["model.encoders.image.patch=-8"], "model.encoders.image: a parameter would have shape"),
        (["model.width=1048576"], "the arguments of a step need more than the"),
        (["optimizer.learning_rate=1e39"], "optimizer.learning_rate=1e+39: must lie between"),
        (
            ["optimizer.rules.0=Rule", "optimizer.rules.0.pattern=^(([a-z_/]+)+)+$X"],
            "optimizer.rules: '^(([a-z_/]+)+)+$X' matches no parameter",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("nothing_compiles")
def test_a_wrong_request_is_one_line_and_leaves_nothing(data, tmp_path, capsys, words, message):
    run_dir = tmp_path / "run"
    assert go(run_dir, data, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    # A directory that a wrong request claimed would belong to another experiment when the corrected one comes.
    assert not run_dir.exists()


def test_a_process_ends_with_the_line_and_the_code(tmp_path):
    words = ("scenes", *TINY, "mesh.data=3", f"data_dir={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}")
    run = subprocess.run(command("train", *words), cwd=ROOT, env=environment(4), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == ("error: a batch of 16 cannot be split evenly over 3 parts of the mesh: use a multiple of 3\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_compiles")
def test_data_that_is_not_there_names_the_command(tmp_path, capsys):
    words = [f"data_dir={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    assert command_line.main(train, "", ["av_digits", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run `python -m launch.prepare av_digits pairing=recording_disjoint noise=noisy data_dir=" in line
    assert not (tmp_path / "run").exists()


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


# Disks


@pytest.mark.usefixtures("nothing_compiles")
def test_a_place_below_a_file_cannot_be_written(data, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert go(tmp_path / "file" / "run", data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path / 'file' / 'run'}: Not a directory" in line
    assert (tmp_path / "file").read_text() == "kept"


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
