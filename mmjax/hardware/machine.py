"""Settings that follow from the machine: what `auto` and None of a configuration stand for."""

import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax

from mmjax.compilation import usable_cores

# Batches are made while an accelerator computes; of its host's cores half are left to everything else.
MOST_WORKERS = 4


@dataclasses.dataclass(frozen=True)
class Machine:
    """The compute dtype, whether stacks of layers are unrolled, and the processes that make batches."""

    dtype: Literal["float32", "bfloat16"]
    unroll: bool
    workers: int


def this_machine() -> Machine:
    """What suits the devices of this process."""
    return machine_of(jax.default_backend())


def machine_of(platform: str) -> Machine:
    """What suits a platform ("cpu", "gpu", "tpu") on a host like this one."""
    cores = usable_cores()
    if platform == "cpu":
        workers = min(1, cores - 1)
        settings = Machine("bfloat16" if _multiplies_bfloat16() else "float32", unroll=True, workers=workers)
    else:
        settings = Machine("bfloat16", unroll=False, workers=max(1, min(MOST_WORKERS, cores // 2)))
    return settings if _can_start_workers() else dataclasses.replace(settings, workers=0)


def _can_start_workers() -> bool:
    """Whether worker processes can import what runs here: a script they would run again."""
    return getattr(sys.modules["__main__"], "__spec__", None) is not None


def _multiplies_bfloat16() -> bool:
    """Whether XLA multiplies bfloat16 faster than float32 on this CPU: by AMX, from JAX 0.12 on."""
    major, minor, *_ = (int(part) for part in version("jax").split(".")[:2])
    try:
        return (major, minor) >= (0, 12) and "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
