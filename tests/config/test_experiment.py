"""An experiment as a value: its file reads back equal, its fingerprint is that of the result, and damage is named."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import chz
import pytest

from mmjax import encoders, fusion
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment, resolve_machine
from mmjax.config.overrides import resolve
from mmjax.config.schema import choices, is_builtin
from mmjax.config.train import Train
from mmjax.data import sources
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.filters import Filtered
from mmjax.data.formats import FORMATS
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.mixture import Mixture
from mmjax.data.sources import AvDigits
from mmjax.encoders import AudioTransformer, ViT
from mmjax.errors import UserError
from mmjax.fusion import CrossAttention
from mmjax.hardware.machine import Machine
from mmjax.heads import Classify
from mmjax.layers.output import Output
from mmjax.model import OUTPUTS, Model
from mmjax.optim import optimizers, schedules
from mmjax.optim.optimizers import AdamW, Rule

EXPERIMENT = Experiment(
    name="digits",
    data=Data(
        source=AvDigits(),
        inputs={
            "image": ImageInput(size=28, channels=1),
            "speech": SpectrogramInput(),
            "label": LabelInput(names=tuple("0123456789")),
        },
    ),
    model=Model(
        encoders={"image": ViT(), "speech": AudioTransformer()},
        outputs={"label": Classify(target="label")},
        fusion=CrossAttention(depth=1),
    ),
    optimizer=AdamW(learning_rate=0.1 + 0.2, rules=(Rule(pattern="encoders/*", freeze=True),)),
    train=Train(steps=7),
)


def changed(*pairs: str) -> Experiment:
    return resolve(EXPERIMENT, pairs)


def test_what_is_written_reads_back_equal():
    for experiment in (
        EXPERIMENT,
        changed("model.encoders.speech=None", "optimizer=Muon", "mesh.fsdp=4", "rules=data", "run_dir=/x"),
    ):
        again = experiment_file.from_json(experiment_file.to_json(experiment))
        assert again == experiment
        assert experiment_file.to_json(again) == experiment_file.to_json(experiment)
        assert list(again.model.encoders) == list(experiment.model.encoders)


def test_json_names_every_class_and_holds_every_value():
    data = json.loads(experiment_file.to_json(EXPERIMENT))
    assert data["class"] == "mmjax.config.experiment.Experiment"
    assert data["run_dir"] == "runs/digits"
    assert data["seed"] == 0
    assert data["model"]["fusion"]["class"] == "mmjax.fusion.cross_attention.CrossAttention"
    assert data["model"]["fusion"]["depth"] == 1
    assert data["optimizer"]["learning_rate"] == 0.30000000000000004
    rule = {"class": "mmjax.optim.optimizers.Rule", "pattern": "encoders/*", "freeze": True}
    assert data["optimizer"]["rules"][0].items() >= rule.items()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("os.system", "model.fusion names 'os.system', which is none of its classes: "),
        ("subprocess.Popen", "model.fusion names 'subprocess.Popen', which is none of its classes: "),
        ("mmjax.types.Tokens", "model.fusion names 'mmjax.types.Tokens', which is none of its classes: mmjax.fusion."),
        ("mmjax.encoders.vit.ViT", "model.fusion names 'mmjax.encoders.vit.ViT', which is none of its classes: mmjax."),
        ("mmjax.fusion.base.Fusion", "model.fusion names 'mmjax.fusion.base.Fusion', which is none of its classes: "),
    ],
)
def test_a_class_that_is_no_node_of_mmjax_is_refused(path: str, line: str, monkeypatch: pytest.MonkeyPatch):
    for module, name in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("called"))
    source = experiment_file.to_json(EXPERIMENT).replace("mmjax.fusion.cross_attention.CrossAttention", path)
    with pytest.raises(UserError) as caught:
        experiment_file.from_json(source, "old.json")
    assert str(caught.value).startswith(f"old.json: {line}")


@pytest.mark.parametrize(
    "pair",
    [
        "name=other",
        "run_dir=elsewhere",
        "data_dir=elsewhere",
        "mesh.fsdp=4",
        "mesh.data=2",
        "rules=data",
        "checkpoint.every=3",
        "train.log_every=3",
        "data.threads=7",
        "data.workers=2",
        "data.prefetch=9",
        "model.dtype=float32",
        "model.unroll=true",
    ],
)
def test_how_a_run_is_carried_out_does_not_change_the_fingerprint(pair: str):
    assert changed(pair) != EXPERIMENT
    assert experiment_file.fingerprint(changed(pair)) == experiment_file.fingerprint(EXPERIMENT)
    assert experiment_file.difference(EXPERIMENT, changed(pair)) == []


@pytest.mark.parametrize(
    ("pairs", "lines"),
    [
        (["seed=1"], ["seed: 0 -> 1"]),
        (["train.steps=8"], ["train.steps: 7 -> 8"]),
        (["optimizer.learning_rate=0.3"], ["optimizer.learning_rate: 0.30000000000000004 -> 0.3"]),
        (["optimizer.rules.0.freeze=false"], ["optimizer.rules.0.freeze: true -> false"]),
        (["optimizer.rules=()"], ["optimizer.rules.0: Rule -> (absent)"]),
        (["data.source.noise=clean"], ["data.source.noise: noisy -> clean"]),
        (["model.encoders.speech=None"], ["model.encoders.speech: AudioTransformer -> None"]),
        (["model.encoders.text=TextTransformer"], ["model.encoders.text: (absent) -> TextTransformer"]),
        (["model.fusion=Concat"], ["model.fusion: CrossAttention -> Concat"]),
        (["model.width=64", "seed=1"], ["model.width: 128 -> 64", "seed: 0 -> 1"]),
    ],
)
def test_what_decides_the_result_changes_the_fingerprint(pairs: list[str], lines: list[str]):
    assert experiment_file.fingerprint(changed(*pairs)) != experiment_file.fingerprint(EXPERIMENT)
    assert experiment_file.difference(EXPERIMENT, changed(*pairs)) == lines


def test_equal_experiments_have_equal_fingerprints():
    reordered = chz.replace(EXPERIMENT.model, encoders=dict(list(EXPERIMENT.model.encoders.items())[::-1]))
    same = chz.replace(EXPERIMENT, model=reordered, seed=-0)
    assert same == EXPERIMENT
    assert experiment_file.fingerprint(same) == experiment_file.fingerprint(EXPERIMENT)
    whole, real = (chz.replace(EXPERIMENT.optimizer, clip=clip) for clip in (1, 1.0))
    assert experiment_file.fingerprint(chz.replace(EXPERIMENT, optimizer=whole)) == experiment_file.fingerprint(
        chz.replace(EXPERIMENT, optimizer=real)
    )


def test_a_run_directory_keeps_the_experiment(tmp_path: Path):
    path = experiment_file.write(EXPERIMENT, tmp_path / "new" / "run")
    assert path == tmp_path / "new" / "run" / "experiment.json"
    assert experiment_file.read(path.parent) == EXPERIMENT
    assert json.loads(path.read_text())["fingerprint"] == experiment_file.fingerprint(EXPERIMENT)
    assert [entry.name for entry in path.parent.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize("step", ["metrics.jsonl", "checkpoints/5/x", "checkpoints/damaged-5/x"])
def test_a_run_directory_belongs_to_one_experiment(tmp_path: Path, step):
    experiment_file.claim(changed("seed=1"), tmp_path)
    # No step was taken: whoever corrects the command may have the directory.
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "experiment.json").write_text("of a class that is not imported")
    experiment_file.claim(EXPERIMENT, tmp_path)
    (tmp_path / step).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / step).write_text('{"step": 1}')
    again = changed("mesh.fsdp=4", "train.log_every=1")
    experiment_file.claim(again, tmp_path)
    assert experiment_file.read(tmp_path) == again
    before = (tmp_path / "experiment.json").read_bytes()
    with pytest.raises(UserError) as caught:
        experiment_file.claim(changed("seed=3", "train.steps=9"), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another experiment (train.steps: 7 -> 9; seed: 0 -> 3); set another run_dir, "
        "or fresh=true for launch.train to move it aside"
    )
    assert (tmp_path / "experiment.json").read_bytes() == before


def refused(folder: Path, content: Any) -> str:
    path = folder / "experiment.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError) as caught:
        experiment_file.read(folder)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def test_a_damaged_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a run directory: it has no experiment.json;"):
        experiment_file.read(tmp_path)
    path = experiment_file.write(EXPERIMENT, tmp_path)
    whole = path.read_bytes()
    good = json.loads(whole)
    for cut in range(0, len(whole) - 3, 97):
        assert refused(tmp_path, whole[:cut]).startswith(" is not valid JSON, perhaps cut short (")
    assert refused(tmp_path, b"\xff" + whole) == " is damaged, it is not UTF-8 text: restore or delete it"
    assert refused(tmp_path, b"[" * 100_000) == " is not valid JSON (nested too deeply)"
    twice = whole.replace(b'"seed": 0', b'"seed": 0, "seed": 1')
    assert "a key is given twice" in refused(tmp_path, twice)
    assert "NaN is not a number" in refused(tmp_path, whole.replace(b'"seed": 0', b'"seed": NaN'))
    assert refused(tmp_path, []) == " does not hold exactly the keys format, fingerprint, earlier and experiment"
    assert refused(tmp_path, good | {"format": 9}).startswith(" has the format 9, and this version")
    assert refused(tmp_path, good | {"fingerprint": "0"}).startswith(" was changed after the run wrote it")

    def altered(**change: Any) -> dict[str, Any]:
        return good | {"experiment": good["experiment"] | change}

    assert refused(tmp_path, altered(seed=5)).startswith(" was changed after the run wrote it")
    assert refused(tmp_path, altered(seed="5")) == ": seed is '5': expected int"
    assert refused(tmp_path, altered(rules="diagonal")).startswith(": rules is 'diagonal': expected data | fsdp")
    assert refused(tmp_path, altered(lr=5)).startswith(": lr is not a key of Experiment, which has name, data, model,")
    del good["experiment"]["model"]["fusion"]["heads"]
    assert refused(tmp_path, good) == ": model.fusion.heads is missing: CrossAttention needs it (int)"


def test_what_is_no_regular_file_is_not_read(tmp_path: Path):
    (path := tmp_path / experiment_file.FILE).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"experiment.json cannot be read \(not a regular file\)$"):
        experiment_file.read(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"experiment.json cannot be read \(not a regular file\)$"):
        experiment_file.read(tmp_path)
    with pytest.raises(UserError, match="no such user's home directory"):
        experiment_file.claim(EXPERIMENT, "~nobody-of-this-name/run")


def test_a_file_that_is_older_than_an_operational_field_is_read(tmp_path: Path):
    path = experiment_file.write(EXPERIMENT, tmp_path)
    whole = json.loads(path.read_text())
    del whole["experiment"]["data"]["inputs"]["image"]["max_pixels"]
    path.write_text(json.dumps(whole))
    assert experiment_file.read(tmp_path) == EXPERIMENT


def test_a_file_in_the_place_of_the_run_directory_is_named(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*experiment.json: (File exists|Not a directory)"):
        experiment_file.write(EXPERIMENT, tmp_path / "run")
    assert (tmp_path / "run").read_text() == ""


MACHINE = Machine("float32", unroll=True, workers=3)


def test_what_is_left_to_the_machine_is_filled_in_and_nothing_else():
    resolved = resolve_machine(EXPERIMENT, MACHINE)
    assert (resolved.model.dtype, resolved.model.unroll, resolved.data.workers) == ("float32", True, 3)
    assert experiment_file.fingerprint(resolved) == experiment_file.fingerprint(EXPERIMENT)
    given = changed("model.dtype=bfloat16", "model.unroll=false", "data.workers=0")
    assert resolve_machine(given, MACHINE) == given


def test_a_run_keeps_the_dtype_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(experiment_file, "this_machine", lambda: MACHINE)
    experiment = changed(f"run_dir={tmp_path}")
    experiment_file.write(resolve_machine(experiment, Machine("bfloat16", unroll=False, workers=1)), tmp_path)

    def resolved(*pairs: str) -> tuple[str, bool | None, int | None]:
        (found,) = experiment_file.resolve_runs([resolve(experiment, pairs)])
        return found.model.dtype, found.model.unroll, found.data.workers

    assert resolved() == ("float32", True, 3)  # it has not begun
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    assert resolved() == ("bfloat16", True, 3)
    assert f"{tmp_path} goes on in bfloat16, as it began; model.dtype=auto is float32 here" in capsys.readouterr().err
    assert resolved("model.dtype=float32") == ("float32", True, 3)
    new = [chz.replace(experiment, run_dir=str(tmp_path / "new")), experiment]
    assert [each.model.dtype for each in experiment_file.resolve_runs(new)] == ["bfloat16", "bfloat16"]


def test_a_run_directory_is_moved_aside(tmp_path: Path, capsys):
    run_dir = tmp_path / "run"
    experiment_file.move_aside(run_dir)  # nothing is there
    for number, content in enumerate(("one", "two"), 1):
        experiment_file.write(EXPERIMENT, run_dir)
        (run_dir / "metrics.jsonl").write_text(content)
        with experiment_file.lock(run_dir), pytest.raises(UserError, match="another process is training in"):
            experiment_file.move_aside(run_dir)
        experiment_file.move_aside(run_dir)
        assert not run_dir.exists()
        assert (tmp_path / f"run.{number}" / "metrics.jsonl").read_text() == content
        assert capsys.readouterr().err == f"moved {run_dir} to {run_dir}.{number}\n"


def test_only_a_run_directory_is_moved_aside(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"fresh=true moves run directories, and .* has no experiment.json"):
        experiment_file.move_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("base", "table"),
    [
        (sources.Source, sources.TABLE | {source.__name__: source for source in (*FORMATS, Filtered, Mixture)}),
        (encoders.Encoder, encoders.TABLE),
        (fusion.Fusion, fusion.TABLE),
        (Output, OUTPUTS),
        (optimizers.Optimizer, optimizers.TABLE),
        (schedules.Schedule, schedules.TABLE),
    ],
)
def test_the_choices_of_every_kind_of_node_are_its_table(base: type, table: dict[str, type]):
    assert {name: cls for name, cls in choices(base).items() if is_builtin(cls)} == table
