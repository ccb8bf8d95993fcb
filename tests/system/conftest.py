"""Whole runs, made small: a tiny model on a few scenes, in this process or in others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from mmjax.growing_file import read_growing
from mmjax.training import run_group, train_program
from tests.flags import flags

ROOT = Path(__file__).resolve().parents[2]

# No speech and few answers: what is tested here does not depend on the modality, and less compiles faster.
TINY = (
    *("data.source.train=96", "data.source.validation=9", "data.source.test=7", "data.source.speech=false"),
    *("data.inputs.speech=None", "model.encoders.speech=None", "model.outputs.speech_text=None"),
    *("model.dtype=float32", "data.workers=0"),
    *("model.width=32", "model.encoders.image.depth=1", "model.encoders.text.depth=1", "model.unroll=false"),
    "model.fusion=Concat",
    *(f"model.outputs.{name}=None" for name in ("position", "colour", "size")),
    *("model.outputs.image_text.size=16", "train.batch_size=16"),
    *("train.log_every=1", "train.evaluate_every=1000", "checkpoint.every=4"),
)

CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def environment(devices: int) -> dict[str, str]:
    """A fresh process's surroundings: the CPU with so many simulated devices."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(devices), "PYTHONPATH": str(ROOT)}


def command(name: str, *words: object) -> list[str]:
    return [sys.executable, "-m", f"launch.{name}", *map(str, words)]


def start(name: str, *words: object, devices: int = 1) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(name, *words),
        cwd=ROOT,
        env=environment(devices),
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(name: str, *words: object, devices: int = 1, code: int = 0) -> str:
    """Run a command to its end and return what it printed; its exit code is `code`."""
    process = start(name, *words, devices=devices)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def interrupt(run_dir: Path, seconds: float, number: signal.Signals, name: str, *words: object) -> int:
    """Start a command, send it a signal so many seconds after its first step of `run_dir`, and return its exit code.

    SIGTERM goes to the command's own processes, too, as schedulers send it.
    """
    metrics = run_dir / "metrics.jsonl"

    def logged() -> set[bytes]:
        return set(read_growing(metrics).splitlines())

    before = logged()
    process = start(name, *words)
    while process.poll() is None and logged() <= before:
        time.sleep(0.01)
    time.sleep(seconds)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=600)
    return process.returncode


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """One for all, so that compiled programs are shared."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data_dir with a compilation cache of its own: the bad texts must not train the tokenizer of other tests."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    yield f"data_dir={tmp_path_factory.mktemp('data')}"
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def nothing_compiles(monkeypatch):
    for module in (run_group, train_program):
        monkeypatch.setattr(module, "jit_once", lambda function: pytest.fail("it came to compiling"))
