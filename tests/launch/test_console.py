"""The console command of an installed mmjax, from a wheel and from an editable install."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("mmjax", "launch", "experiments", "pyproject.toml", "setup.py", "README.md")


def run(*command: object, cwd: Path, code: int = 0, **more: str) -> str:
    """Run a command; returns its standard output, or what it says where it is to fail."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")} | more
    words = [*map(str, command)]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, tmp_path_factory) -> Path:
    """The folder of programs of an environment with a new mmjax, and with the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    checkout, environment = folder / "checkout", folder / "environment"
    checkout.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, checkout / part)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python)
    paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}  # Of a build no more than this environment has.
    what: tuple[object, ...] = ("--editable", checkout)
    if request.param == "wheel":
        run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, checkout, cwd=folder, **paths)
        what = tuple(folder.glob("mmjax-*.whl"))
        shutil.rmtree(checkout)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed")
    run(*pip, "install", *options, *what, cwd=folder, **paths)
    assert not {"launch", "experiments"} & {path.stem for path in site.iterdir()}
    if request.param == "wheel":
        for part in ("mmjax", "launch", "experiments"):
            there = site / "mmjax" / (part if part != "mmjax" else "")
            files = {path.relative_to(ROOT / part) for path in (ROOT / part).rglob("*.*") if path.is_file()}
            assert not [path for path in files if path.suffix not in (".md", ".pyc") and not (there / path).exists()]
    return environment / "bin"


def test_it_is_the_command_of_the_checkout(installed: Path, tmp_path: Path):
    words = ("interactions", "--help", "model.width=32")
    ours = run(installed / "mmjax", "train", *words, cwd=tmp_path)
    there = run(sys.executable, "-m", "launch.train", *words, cwd=ROOT)
    assert ours.replace("usage: mmjax train", "usage: python -m launch.train") == there


def test_experiments_that_build_on_others_and_commands_of_other_commands_are_there(installed: Path, tmp_path: Path):
    assert "cifar10_vae" in run(installed / "mmjax", "train", "cifar10_vae", "--help", cwd=tmp_path)
    script = run(
        *(installed / "mmjax", "cluster", "slurm", "nodes=2", f"out={tmp_path / 'job.sh'}"),
        *("--", "train", "interactions", "run_dir=x"),
        cwd=tmp_path,
    )
    assert "mmjax.launch.train" in Path(script.splitlines()[-1]).read_text()


def test_an_experiment_of_the_folder_one_is_in(installed: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("from mmjax.experiments.interactions import interactions as mine\n")
    assert "\n  name=" in run(installed / "mmjax", "train", "mine.py", "--help", cwd=tmp_path)
    assert "\n  name=" in run(installed / "mmjax", "train", "mine:mine", "--help", "modules=mine", cwd=tmp_path)


def test_help_is_quick_and_what_there_is_not_is_a_line(installed: Path, tmp_path: Path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        listing = run(installed / "mmjax", "--help", cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert all(f"\n  {name} " in listing for name in COMMANDS)
    assert min(seconds) < 0.5
    error = run(installed / "mmjax", "trian", cwd=tmp_path, code=2)
    assert error.startswith("error: unknown command 'trian'; the nearest is train; there are inspect, new, train, ")


def test_every_program_of_launch_is_a_command():
    def is_program(path: Path) -> bool:
        return any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            for node in ast.parse(path.read_text()).body
        )

    files = {path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "__main__" and is_program(path)}
    assert files | {path.parent.name for path in (ROOT / "launch").glob("*/__main__.py")} == set(COMMANDS)
