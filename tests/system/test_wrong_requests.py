"""A wrong request is one line, and nothing that was there changes."""

import subprocess

import pytest

from launch import command_line
from launch.train import train
from tests.system.conftest import ROOT, TINY, command, environment
from tests.system.picture_run import go, replace


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    """Every scene has a sound, also where nothing is bad."""
    replace(monkeypatch, {})


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
def test_a_place_below_a_file_cannot_be_written(data, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert go(tmp_path / "file" / "run", data) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path / 'file' / 'run'}: Not a directory" in line
    assert (tmp_path / "file").read_text() == "kept"
