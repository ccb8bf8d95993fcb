"""What the README and docs show is true: commands run, the error is that error, examples work, links resolve."""

import ast
import json
import re
import shlex
import subprocess
import sys

import pytest

from launch import ablate
from mmjax import encoders, fusion, generators, heads
from mmjax.ablation import grid
from mmjax.config.overrides import apply, config_tree
from tests.system.conftest import ROOT, TINY, environment, finish

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
# Commands stand in blocks, and in the last cell of the README's table.
LINES = [line for _, block in BLOCKS for line in block.splitlines()] + re.findall(
    r"\| `(python -m .*)` \|$", TEXT, re.M
)
COMMANDS = [line.partition(" #")[0].split("&& ")[-1].strip() for line in LINES if "python -m launch" in line]
COMMANDS = list(dict.fromkeys(line for line in COMMANDS if not line.startswith("$")))


def python_block(name: str) -> str:
    """The one example that defines `name`."""
    (code,) = [block for language, block in BLOCKS if language == "python" and f" {name}(" in block]
    return code


def words_of(line: str) -> tuple[str, list[str]]:
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"], line
    return words[2].removeprefix("launch."), words[3:]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "launch.train" in line])
def test_train_commands_resolve(line):
    name, words = words_of(line)
    output = finish(name, *words, "--help")
    assert "train.steps" in output
    for key, value in (word.split("=") for word in words if "=" in word):
        assert re.search(rf"^  .*{re.escape(f'{key}={value}')}( |$)", output, re.MULTILINE), key


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.search("launch.(evaluate|plan|profile)", line)])
def test_commands_that_look_at_runs_resolve(line):
    name, words = words_of(line)
    output = finish(name, *words, "--help")
    for key, value in (word.split("=") for word in words if "=" in word):
        assert re.search(rf"^  .*{re.escape(f'{key}={value}')}( |$)", output, re.MULTILINE), key


@pytest.mark.parametrize("line", [line for line in COMMANDS if re.search(r"(launch\.|-- )ablate", line)])
def test_ablate_commands_resolve(line):
    words = shlex.split(line)
    name, *pairs = words[words.index("--") + 2 if "--" in words else 3 :]
    ablation = apply(config_tree(ablate.load(name), name), pairs).make()
    experiment = ablate.experiment_of(ablation)
    keys = grid.keys_of(ablation.over)
    cells = grid.make_grid(experiment, keys, grid.choices_of(experiment, keys, ablation.choices), ROOT)
    assert len(cells) > 2


def test_first_command_trains(tmp_path, data_dir):
    assert COMMANDS[0] == "python -m launch.train scenes"
    name, words = words_of(COMMANDS[0])
    # As it stands, with its speech, but smaller and shorter.
    sizes = ("data.source.train=64", "data.source.validation=8", "data.source.test=8", "model.width=32")
    run = tmp_path / "run"
    short = ("model.unroll=false", "train.steps=3", "train.batch_size=8", f"data_dir={data_dir}", f"run_dir={run}")
    output = finish(name, *words, *sizes, *short)
    assert output.splitlines()[-1] == str(run / "summary.json")
    for stands in ("experiment.json", "metrics.jsonl", "tensorboard", "summary.json", "report.html", "checkpoints/3"):
        assert (run / stands).exists(), stands


def test_local_and_cluster_commands(tmp_path):
    (local,) = [line for line in COMMANDS if "launch.local" in line and "-- train" in line]
    name, words = words_of(local)
    # Such a command trains in `test_processes`.
    output = finish(name, *words, "--help")
    for process in range(2):
        assert re.search(rf"^\[process {process}\] .* {re.escape(words[-1])} ", output, re.MULTILINE)
    (cluster,) = [line for line in COMMANDS if "launch.cluster" in line]
    name, words = words_of(cluster)
    words = [f"out={tmp_path / 'job.sh'}" if word.startswith("out=") else word for word in words]
    finish(name, *words)
    assert (tmp_path / "job.sh").read_text().startswith("#!")


def test_generate_command_makes(tmp_path, data_dir):
    name, (run_dir, *words) = words_of(next(line for line in COMMANDS if "launch.generate" in line and "n=8" in line))
    (training,) = [line for line in COMMANDS if "launch.train" in line and f"run_dir={run_dir}" in line]
    trainer, trained = words_of(training)
    run = tmp_path / "run"
    trained = [word for word in trained if not word.startswith("run_dir=")]
    finish(trainer, *trained, *TINY, "train.steps=2", f"data_dir={data_dir}", f"run_dir={run}")
    output = finish(name, run, *words)
    assert output.splitlines()[-1] == str(run / "generated" / "generation.json")
    for stands in ("image-8.png", "sheet.png", "report.html"):
        assert (run / "generated" / stands).exists(), stands
    name, (run_dir, *words) = words_of(next(line for line in COMMANDS if "launch.evaluate runs/drawn" in line))
    assert run_dir in training
    output = finish(name, run, *words)
    assert output.splitlines()[-1] == str(run / "evaluations" / "2.json")
    name, (run_dir, *words) = words_of(next(line for line in COMMANDS if "launch.export" in line))
    assert run_dir in training
    (out,) = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    output = finish(name, run, *[word.replace(out, str(tmp_path / out)) for word in words])
    assert output.splitlines()[-1] == str(tmp_path / out / "export.json")
    for block in [block for language, block in BLOCKS if language == "python" and out in block]:
        process = [sys.executable, "-c", block]
        printed = subprocess.check_output(process, cwd=tmp_path, env=environment(1), text=True)
        assert printed == "(2, 32)\n"


def test_prepare_command_reads():
    (prepare,) = [line for line in COMMANDS if "launch.prepare" in line]
    name, words = words_of(prepare)
    assert "manual_dir" in finish(name, *words, "--help")


def test_error_is_that_error():
    (asked,) = [line for line in LINES if line.startswith("$ ")]
    name, words = words_of(asked.removeprefix("$ "))
    answer = LINES[LINES.index(asked) + 1]
    assert finish(name, *words, code=2).splitlines() == [answer]


# What a process of its own does with the README's encoder: a class stays among its base's choices as long as it lives.
USE_ENCODER = """
import sys, types
import jax, jax.numpy as jnp
from flax import nnx
from mmjax.encoders import text
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

module = types.ModuleType("mmjax.encoders.bag")
vars(module).update({name: value for name, value in vars(text).items() if not name.startswith("__")})
sys.modules[module.__name__] = module
exec(sys.argv[1], vars(module))
with jax.set_mesh(MeshShape().build()):
    encoder = module.Bag().build(text.Text(4, 10), Settings(8, PRESETS["data"]), nnx.Rngs(0))
    tokens, _ = encoder(jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool), None)
print(tokens.values.shape)
"""


def test_the_encoder_is_one():
    process = [sys.executable, "-c", USE_ENCODER, python_block("Bag")]
    output = subprocess.check_output(process, cwd=ROOT, env=environment(1), text=True)
    assert output.splitlines()[-1] == "(2, 4, 8)"


USE_FUSION = """
import sys, types
import jax, jax.numpy as jnp
from flax import nnx
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Tokens

module = types.ModuleType("mmjax.fusion.product")
sys.modules[module.__name__] = module
exec(sys.argv[1], vars(module))
with jax.set_mesh(MeshShape().build()):
    fusion = module.Product().build(("a", "b"), Settings(4, PRESETS["data"]), nnx.Rngs(0))
    there = jnp.ones((2, 3), bool)
    a = Tokens(jnp.full((2, 3, 4), 2.0), there)
    b = Tokens(jnp.full((2, 3, 4), 5.0), there.at[1].set(False))
    _, pooled, _ = fusion({"a": a, "b": b}, None)
print(pooled.shape, pooled[:, 0].tolist())
"""


def test_the_fusion_multiplies_what_is_there():
    process = [sys.executable, "-c", USE_FUSION, python_block("Product")]
    output = subprocess.check_output(process, cwd=ROOT, env=environment(1), text=True)
    assert output.splitlines()[-1] == "(2, 4) [10.0, 2.0]"


USE_HEAD = """
import sys, types
import jax, jax.numpy as jnp
import numpy as np
from flax import nnx
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Fused, Tokens, Vector

module = types.ModuleType("mmjax.heads.least_squares")
sys.modules[module.__name__] = module
exec(sys.argv[1], vars(module))
with jax.set_mesh(MeshShape().build()):
    config = module.LeastSquares(target="size")
    head = config.build({"size": Vector(2)}, Settings(4, PRESETS["data"]), nnx.Rngs(0))
    pooled = jnp.zeros((2, 4))
    fused = Fused(Tokens(pooled[:, None], jnp.ones((2, 1), bool)), pooled, {})
    values = jnp.array([[[3.0, 1.0]], [[jnp.nan, jnp.nan]]])
    batch = Batch({"size": values}, {"size": jnp.ones((2, 1), bool)}, {"size": jnp.array([True, False])})
    loss, _ = head.loss(fused, batch, None, None)
    values, real = np.array([[[3.0, 1.0]], [[5.0, 5.0]]]), np.array([[True], [False]])
    found = head.statistics({"mean": np.zeros((2, 1, 2))}, values, real, Vector(2))
    print(head.predict(fused, None)["mean"].shape, float(loss.total), found["absolute_error"].value)
"""

USE_SOURCE = """
import sys, types
from mmjax.data.sources.base import Records

module = types.ModuleType("mmjax.data.sources.counting")
sys.modules[module.__name__] = module
exec(sys.argv[1], vars(module))
records = module.Counting(train=6).open("", "train")
assert isinstance(records, Records)
print(len(records), records[5], records.id(5))
"""


def test_the_head_adds_up_squared_errors_and_has_metrics():
    process = [sys.executable, "-c", USE_HEAD, python_block("LeastSquares")]
    output = subprocess.check_output(process, cwd=ROOT, env=environment(1), text=True)
    assert output.splitlines()[-1] == "(2, 1, 2) 10.0 2.0"


def test_the_source_has_examples():
    process = [sys.executable, "-c", USE_SOURCE, python_block("Counting")]
    output = subprocess.check_output(process, cwd=ROOT, env=environment(1), text=True)
    assert output.splitlines()[-1] == "6 {'text': 'one', 'label': 1} train/5"


def test_the_experiment_trains_and_is_used_in_python(tmp_path, data_dir):
    (tmp_path / "my_experiment.py").write_text(python_block("my_experiment"))
    surroundings = environment(1)
    for line in ("my_experiment.py", "interactions modules=my_experiment model.fusion=Hadamard"):
        assert f"mmjax train {line}\n" in README.read_text()
    options = {"cwd": tmp_path, "env": surroundings, "text": True, "timeout": 300}
    words = ["my_experiment.py", f"data_dir={data_dir}", "data.source.count=600", "train.evaluate_every=1000"]
    output = subprocess.check_output([sys.executable, "-m", "launch.train", *words], **options)
    assert output.splitlines()[-1] == "runs/mine/summary.json"
    metrics = json.loads((tmp_path / "runs/mine/summary.json").read_text())["metrics"]
    assert metrics["test/label/accuracy"] > 0.9
    (used,) = [block for language, block in BLOCKS if language == "python" and '"runs/mine"' in block]
    agree, shape = subprocess.check_output([sys.executable, "-c", used], **options).splitlines()
    assert [answer[0][0] for answer in ast.literal_eval(agree)] == ["agree", "differ"]
    assert shape == "(1, 32)"
    words = ["interactions", "modules=my_experiment", "model.fusion=Hadamard", "--help"]
    assert "Hadamard" in subprocess.check_output([sys.executable, "-m", "launch.train", *words], **options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 160


def test_names_on_the_pages_exist():
    for folder in re.findall(r"`(mmjax/[\w/.]+)`", TEXT):
        assert (ROOT / folder.replace("NAME", "text")).exists(), folder
    for name in (*encoders.TABLE, *fusion.TABLE, *generators.TABLE, *heads.TABLE):
        assert f"`{name}`" in TEXT
