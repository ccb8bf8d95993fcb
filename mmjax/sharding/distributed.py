"""Multi-process runs: joining the other processes, barriers and small exchanges.

`launch.local` and the scripts of `launch.cluster` describe the processes by three environment variables; under SLURM,
Open MPI or on a TPU pod without them, JAX's own detection is used. In a single process every function returns at once.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.errors import UserError

COORDINATOR = "MMJAX_COORDINATOR"  # host:port of process 0, or "auto": what JAX detects
PROCESSES = "MMJAX_PROCESSES"
PROCESS_ID = "MMJAX_PROCESS_ID"

# A process that is done waits this long (seconds) for the others, of which the lead may still be writing its report.
DONE_TIMEOUT = 3600
RESUMABLE = 75


def initialize(timeout: float = 300) -> None:
    """Joins this process with the others of its run; does nothing if it is alone or has joined already.

    Call it before anything uses a device. Afterwards an uncaught exception ends the process at once (see `leave`), and
    SIGTERM is the caller's to handle: JAX's own preemption service is off.

    Args:
        timeout: seconds within which all processes have to start.

    Raises:
        UserError: the variables are malformed, or not all processes started in time.
    """
    if jax.distributed.is_initialized():
        return
    arguments = _arguments(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_enable_preemption_service", False)
    sys.excepthook = _end_at_once
    _connect(arguments, timeout)


def process_index_and_count() -> tuple[int, int]:
    """This process's index and the number of processes, for work divided without communication.

    Raises UserError where only JAX could find that out.
    """
    arguments = _arguments(os.environ)
    if arguments is None:
        return 0, 1
    if not arguments:
        raise UserError(
            f"set {PROCESSES} and {PROCESS_ID} beside {COORDINATOR}=host:port: this work is divided by them"
        )
    return arguments["process_id"], arguments["num_processes"]


def is_main_process() -> bool:
    """Whether this is the process that writes files."""
    return jax.process_index() == 0


def gather_lines(lines: list[str]) -> list[str]:
    """The lines of all processes in their order, on every process. All must call it."""
    if jax.process_count() == 1:
        return lines
    own = np.frombuffer(json.dumps(lines).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(own.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: own.size] = own
    everyone = multihost_utils.process_allgather(padded)
    return [line for data, size in zip(everyone, sizes, strict=True) for line in json.loads(data[:size].tobytes())]


def any_process(flag: bool) -> bool:
    """Whether the flag is true on any process; all must call it, and it waits for the devices."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def barrier(name: str) -> None:
    """Returns when every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code; every command of `launch` ends with it.

    A process that is done (0) or interrupted (75) waits for the others. One that failed does not: the others wait for
    it in a collective until the exit barrier of `jax.distributed` gives up.
    """
    if code in (0, RESUMABLE) or not jax.distributed.is_initialized():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`: None if alone, empty if JAX is to detect them."""
    coordinator = environment.get(COORDINATOR)
    if coordinator is None:
        return {} if _launched_by_others(environment) else None
    if coordinator == "auto":
        return {}
    try:
        host, port = coordinator.rsplit(":", 1)
        count, index = int(environment[PROCESSES]), int(environment[PROCESS_ID])
        if not (host and 0 < int(port) < 65536 and 0 <= index < count):
            raise ValueError(coordinator)
    except (KeyError, ValueError):
        values = ", ".join(f"{name}={environment.get(name, '')}" for name in (COORDINATOR, PROCESSES, PROCESS_ID))
        raise UserError(
            f"{values} do not give this process's index and count: unset them, or set host:port (or auto), a count "
            "and an index"
        ) from None
    arguments = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    if host in ("127.0.0.1", "localhost"):
        arguments["coordinator_bind_address"] = coordinator  # a run on one machine listens to that machine only
    # Without detection JAX leaves a process all devices of its node (under SLURM it would take one by local rank).
    return arguments | {"cluster_detection_method": "deactivate"}


def _launched_by_others(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler that JAX knows started this process as one of several."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    return "," in hosts or any(int(environment.get(name) or 1) > 1 for name in counts)


def _connect(arguments: dict[str, Any], timeout: float) -> None:
    """`jax.distributed.initialize` with our own timeout: JAX's aborts with a stack trace."""
    errors: list[Exception] = []

    def connect():
        try:
            jax.distributed.initialize(
                **arguments, initialization_timeout=int(timeout) + 60, shutdown_timeout_seconds=DONE_TIMEOUT
            )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    who = f"process {arguments['process_id']} of {arguments['num_processes']}" if arguments else "this process"
    where = f" at {arguments['coordinator_address']}" if arguments else ""
    if thread.is_alive():
        raise UserError(
            f"{who} did not reach all other processes{where} within {timeout:g} s: check that every process is "
            "started and can reach that address"
        )
    if errors and isinstance(errors[0], ValueError):
        raise UserError(f"JAX cannot detect the processes ({errors[0]}): set {COORDINATOR}")
    if errors:
        raise errors[0]


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's handling of an uncaught exception, without waiting for other processes (see `leave`)."""
    sys.__excepthook__(kind, error, trace)
    leave(130 if issubclass(kind, KeyboardInterrupt) else 1)
