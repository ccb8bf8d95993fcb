"""House rules that a machine can check: who imports whom, what of Flax is used, and what importing mmjax costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from tests.mutants import MUTANTS
from tests.mutations import mutated

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("mmjax", "launch", "experiments") for path in (ROOT / room).rglob("*.py"))
# A model is a pytree and everything that computes is a pure function, so nothing else of NNX has a use.
NNX = {"Module", "Param", "Rngs", "List", "Dict", "split", "merge", "state"}
BANNED = {"pickle", "dill", "cloudpickle", "tensorflow", "torch", "haiku"}
# They take part where they are what is compared with.
PEERS, COMPARED = {"tensorflow", "torch"}, ROOT / "launch" / "benchmarks"
# Imported by the functions that need them, so that starting, asking for help and reading results are quick.
HEAVY = (
    *("tensorflow_datasets", "tensorflow", "orbax", "grain", "array_record", "tensorboardX", "matplotlib", "scipy"),
    *("cv2", "soundfile", "espeakng_loader", "tokenizers", "jinja2", "sklearn"),
)
# Rooms whose docstrings are rewritten on other branches.
TO_DO = (
    *("mmjax/training", "mmjax/evaluation", "mmjax/reports", "mmjax/ablation", "mmjax/config", "mmjax/optim"),
    *("mmjax/checkpoint", "launch/"),
)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> set[str]:
    """The modules that a file imports anywhere."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_rooms_import_one_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_files_keep_the_rules():
    broken = []
    for path in FILES:
        tree = parse(path)
        modules = imported(tree)
        unwanted = BANNED - PEERS if COMPARED in path.parents else BANNED
        banned = {name for name in modules if name.split(".")[0] in unwanted or name.startswith("flax.linen")}
        used = {
            f"nnx.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx"
        }
        banned |= used - {f"nnx.{name}" for name in NNX}
        broken += [f"{path.relative_to(ROOT)} uses {name}" for name in sorted(banned)]
    assert FILES
    assert not broken, "\n".join(broken)


def file_imports(path: Path, files: dict[str, Path]) -> set[str]:
    """The files of ours that a file imports, at its top, inside functions and under TYPE_CHECKING, by module name."""
    module = module_name(path)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # What is imported from a package is a file of it, or something that its own file holds.
            found |= {name if (name := f"{base}.{alias.name}") in files else base for alias in node.names}
    return found & set(files) - {module}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_two_files_import_each_other_even_by_way_of_others():
    files = {module_name(path): path for path in FILES}
    waiting = {name: file_imports(path, files) for name, path in files.items()}
    assert sum(map(len, waiting.values())) > len(files)
    while ready := {name for name, needs in waiting.items() if not needs}:
        waiting = {name: needs - ready for name, needs in waiting.items() if name not in ready}
    # What is left is on a circle or needs a file that is.
    needed = set().union(*waiting.values())
    assert not waiting, "\n".join(f"{name}: {', '.join(sorted(waiting[name]))}" for name in sorted(needed))


@pytest.mark.parametrize("module", ["mmjax", "mmjax.config.experiment_file", "launch.train"])
def test_heavy_libraries_wait_until_they_are_needed(module):
    script = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_docstrings_begin_with_a_short_line():
    long = []
    for path in FILES:
        if path.relative_to(ROOT).as_posix().startswith(TO_DO):
            continue
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                line, *_ = (ast.get_docstring(node) or "").split("\n")
                long += [f"{path.relative_to(ROOT)}: {line}"] * (len(line) > 100)
    assert not long, "\n".join(long)


def test_every_mutant_still_changes_its_file():
    for group, mutants in MUTANTS.items():
        for name in mutants:
            mutated(group, name)
        assert (ROOT / "tests" / group[1].split()[0]).exists(), group[1]


@pytest.mark.parametrize(("given", "level"), [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")])
def test_commands_hide_the_alarms_of_xla_unless_asked_for(given, level):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | given
    script = "import launch.train, os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, level), done.stderr
