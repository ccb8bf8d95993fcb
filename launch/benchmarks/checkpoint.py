"""A checkpoint of 100 million float32 parameters: how long saving blocks a step, and reading takes.

The write behind the step is waited for between measurements, and all implementations read files right after writing.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .runner import Benchmark, Ratio

ARRAYS, SIZE = 25, (2000, 2000)


def _parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layer_{index}/kernel": rng.random(SIZE, np.float32) for index in range(ARRAYS)}


def ours(dtype: str) -> Callable[[], dict[str, float]]:
    """As in training: the step continues as soon as its arrays may be overwritten."""
    import jax

    from mmjax.checkpoint.manager import Checkpoint, Checkpoints

    state = jax.device_put(_parameters())
    jax.block_until_ready(state)
    abstract = jax.eval_shape(lambda: state)

    def measure() -> dict[str, float]:
        with (
            tempfile.TemporaryDirectory(prefix="checkpoint-") as folder,
            contextlib.closing(Checkpoints(folder, Checkpoint())) as checkpoints,
        ):
            began = time.perf_counter()
            checkpoints.save(1, state, {}, {})
            blocked = time.perf_counter() - began
            checkpoints.wait()
            written = time.perf_counter() - began
            began = time.perf_counter()
            found = checkpoints.restore(abstract)
            assert found is not None
            jax.block_until_ready(found[0])
            return {"blocked": blocked, "written": written, "restored": time.perf_counter() - began}

    return measure


def torch(dtype: str) -> Callable[[], dict[str, float]]:
    """`torch.save` and `torch.load`."""
    import torch

    state = {name: torch.from_numpy(array) for name, array in _parameters().items()}
    return _files(lambda file: torch.save(state, file), lambda file: torch.load(file, weights_only=True))


def safetensors(dtype: str) -> Callable[[], dict[str, float]]:
    """The safetensors format, by its PyTorch functions."""
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: torch.from_numpy(array) for name, array in _parameters().items()}
    # What is read is only mapped into memory before somebody looks at it.
    return _files(
        lambda file: save_file(state, file),
        lambda file: {name: array.clone() for name, array in load_file(file).items()},
    )


def _files(save: Callable[[Path], Any], read: Callable[[Path], Any]) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            began = time.perf_counter()
            save(Path(folder, "state"))
            blocked = time.perf_counter() - began
            began = time.perf_counter()
            found = read(Path(folder, "state"))
            restored = time.perf_counter() - began
            assert len(found) == ARRAYS
            return {"blocked": blocked, "written": blocked, "restored": restored}

    return measure


BENCHMARK = Benchmark(
    about="a checkpoint of 100 M float32 parameters",
    implementations={"mmjax": ours, "torch": torch, "safetensors": safetensors},
    ratios=(
        Ratio("the step is held up, over torch.save", "mmjax", "torch", "blocked"),
        Ratio("written, over torch.save", "mmjax", "torch", "written"),
        Ratio("restored, over torch.load", "mmjax", "torch", "restored"),
        Ratio("the step is held up, over safetensors", "mmjax", "safetensors", "blocked"),
        Ratio("restored, over safetensors", "mmjax", "safetensors", "restored"),
    ),
)
