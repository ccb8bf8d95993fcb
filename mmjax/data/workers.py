"""The loader's worker processes: signals, their end with the parent, and flags."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Blocks SIGTERM and SIGINT in threads and processes started inside.

    This process ends them itself: if a signal to the whole process group ended a worker, this process would wait for it
    for ever.
    """
    # It removes what a worker leaves in shared memory when it is stopped, and would warn of that.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    resource_tracker.ensure_running()  # its start would unblock the signals in the thread that starts the workers
    sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(index: int, count: int) -> None:
    """Makes this worker exit when its parent process is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def parse_flags() -> None:
    """Marks absl's flags as parsed: Grain sends them to its workers and fails if they are not."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
