"""An experiment and a fusion of the user's own, in a folder outside the checkout: trained, resumed, evaluated there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.conftest import environment

EXPERIMENT = '''"""An experiment of one's own."""

import chz
import jax.numpy as jnp

import mmjax as mm
from experiments.interactions import interactions
from mmjax.fusion.base import PooledFusion
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm


@chz.chz
class Hadamard(mm.Fusion):
    """The product of all modalities' mean tokens."""

    def build(self, modalities, settings, rngs):
        return HadamardFusion(modalities, settings, rngs)


class HadamardFusion(PooledFusion):
    def __init__(self, modalities, settings, rngs):
        width, rules = settings.width, settings.rules
        self.project = Linear((width, width), ("embed", None), rules=rules, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.modalities = modalities

    def combine(self, means, present, key):
        product = 1.0
        for index in range(len(self.modalities)):
            product *= jnp.where(present[:, index, None], means[:, index], 1.0)
        return self.norm(self.project(product)), {}


def my_experiment() -> mm.Experiment:
    """Interactions, fused by a product."""
    small = interactions()
    return chz.replace(
        small,
        name="mine",
        data=chz.replace(small.data, source=chz.replace(small.data.source, train=96, validation=8, test=7)),
        model=chz.replace(small.model, width=32, fusion=Hadamard()),
        train=mm.Train(steps=4, batch_size=16, log_every=1, evaluate_every=100),
        checkpoint=mm.Checkpoint(every=2),
    )
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "my_experiment.py").write_text(EXPERIMENT)
    return folder


def launch(folder: Path, name: str, *words: str, code: int = 0) -> tuple[list[str], str]:
    """Run a command from a folder; returns its lines of standard output, and its standard error."""
    command = [
        sys.executable,
        "-m",
        f"launch.{name}",
        *words,
        *(["data_dir=data"] if name in ("train", "plan") else []),
    ]
    done = subprocess.run(command, cwd=folder, env=environment(1), text=True, capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    launch(folder, "train", "my_experiment.py")
    return folder / "runs" / "mine"


def test_the_run_keeps_where_its_own_classes_are_from(trained: Path, folder: Path):
    whole = json.loads((trained / "experiment.json").read_text())
    assert whole["experiment"]["model"]["fusion"] == {"class": "my_experiment:Hadamard"}
    kept = json.loads((trained / "modules.json").read_text())
    assert list(kept) == ["my_experiment"]
    assert kept["my_experiment"]["file"] == str(folder / "my_experiment.py")


def test_it_is_evaluated_only_where_its_module_is_named(trained: Path, folder: Path):
    _, errors = launch(folder, "evaluate", "runs/mine", code=2)
    assert errors.splitlines()[-1] == (
        "error: runs/mine/experiment.json: model.fusion is of class 'my_experiment:Hadamard', whose module is not "
        "imported; import it first, by modules=my_experiment in a command"
    )
    lines, errors = launch(folder, "evaluate", "runs/mine", "modules=my_experiment", "suite=standard")
    assert lines[-1] == "runs/mine/evaluations/4.json"
    assert "is not the file" not in errors


def test_it_goes_on_and_a_changed_file_is_reported(trained: Path, folder: Path):
    """From an earlier checkpoint, and by the other two ways of naming it."""
    shutil.rmtree(trained / "checkpoints" / "4")
    (trained / "summary.json").unlink()
    (folder / "my_experiment.py").write_text(EXPERIMENT + "\n# A change.\n")
    line = f"runs/mine: my_experiment ({folder}/my_experiment.py) is not the file it was when the run last trained"
    _, errors = launch(folder, "evaluate", "runs/mine", "modules=my_experiment", "suite=standard", "step=2")
    assert errors.count(line) == 1
    _, errors = launch(folder, "train", "my_experiment:my_experiment")
    assert json.loads((trained / "summary.json").read_text())["step"] == 4
    assert [row["step"] for row in metrics(trained) if "train/loss" in row] == [1, 2, 3, 4]
    assert errors.count(line) == 1
    _, errors = launch(folder, "train", f"{folder}/my_experiment.py:my_experiment")
    assert line not in errors


def test_its_class_is_a_choice_for_other_experiments(folder: Path):
    lines, _ = launch(folder, "train", "interactions", "--help", "modules=my_experiment", "model.fusion=Hadamard")
    assert lines[lines.index("from the command line") + 1].split()[0] == "model.fusion=Hadamard"
    _, errors = launch(folder, "train", "interactions", "--help", "model.fusion=Hadamard", code=2)
    assert errors.startswith("error: model.fusion=Hadamard: no such class; the nearest is ")


def test_an_ablation_over_all_choices_has_it_last(folder: Path):
    script = "import my_experiment as mine; from mmjax.ablation.grid import choices_of; "
    script += "print(*choices_of(mine.my_experiment(), ['model.fusion'], None)[0])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment(1), text=True, capture_output=True, timeout=60
    )
    names = done.stdout.split()
    assert (names[0], names[-1]) == ("Sum", "Hadamard"), done.stderr
