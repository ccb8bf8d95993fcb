"""Compiled programs are kept on disk, so that the second start of a run does not compile again."""

from pathlib import Path

import jax


def cache_compilations(data_dir: str) -> None:
    """Have JAX keep what it compiles under `data_dir`, however small and quick to compile."""
    jax.config.update("jax_compilation_cache_dir", str(Path(data_dir).expanduser() / "compilations"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
