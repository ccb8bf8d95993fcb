"""Compilation: JAX's persistent cache, and quick compilation of programs that run once."""

import os
import warnings
from collections.abc import Callable

import jax

from mmjax.files import to_path


def cache_compilations(data_dir: str) -> None:
    """Enables JAX's persistent compilation cache under `data_dir`, also for small programs.

    JAX 0.12 cannot save a CPU program that calls oneDNN (`mmjax.hardware.chips.compiler_options`): such a training step
    is compiled in every run, which costs less than steps without oneDNN would.
    """
    warnings.filterwarnings(
        "ignore", "Error writing persistent compilation cache entry .*: MemoryError: std::bad_alloc"
    )
    jax.config.update("jax_compilation_cache_dir", str(to_path(data_dir) / "compilations"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def jit_once(function: Callable) -> Callable:
    """`jax.jit` for a program that runs once, such as the drawing of parameters.

    On a CPU it compiles in less than half the time without LLVM's optimisations, and runs hardly longer.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
