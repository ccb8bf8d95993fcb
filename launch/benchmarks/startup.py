"""Start-up time: imports, and a run's first step with and without the compilation cache."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .runner import Benchmark, Ratio

# A run that is as small as one can be without being compiled in no time.
TRAIN = ("interactions", "train.steps=1", "train.batch_size=64", "model.unroll=false")


def _seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _train(folder: Path) -> float:
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    return _seconds("-m", f"{__package__.rpartition('.')[0]}.train", *TRAIN, f"data_dir={folder}", f"run_dir={run_dir}")


def again(dtype: str) -> Callable[[], dict[str, float]]:
    """A run whose programs are in the compilation cache."""
    folder = tempfile.TemporaryDirectory(prefix="benchmark-startup-")  # removed at the end of the process
    return lambda: {"run": _train(Path(folder.name))}


def afresh(dtype: str) -> Callable[[], dict[str, float]]:
    """A run whose programs have to be compiled."""

    def measure() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as folder:
            return {"run": _train(Path(folder))}

    return measure


def importing(module: str) -> Callable[[str], Callable[[], dict[str, float]]]:
    """A Python that imports a module and does nothing else."""
    return lambda dtype: lambda: {"import": _seconds("-c", f"import {module}")}


BENCHMARK = Benchmark(
    about="a command's start, with what was compiled before over without",
    implementations={
        "again": again,
        "afresh": afresh,
        "mmjax": importing("mmjax.config.experiment_file"),
        "jax": importing("jax"),
    },
    ratios=(
        Ratio("a run of one step, compiled before over compiled now", "again", "afresh", "run"),
        Ratio("importing mmjax.config.experiment_file over importing jax", "mmjax", "jax", "import"),
    ),
)
