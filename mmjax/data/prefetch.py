"""Prefetching of batches in a thread, and shutdown of the loader's threads and processes."""

import contextlib
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from mmjax.errors import Preempted

if TYPE_CHECKING:
    import grain

PATIENCE = 30.0  # seconds without a batch before a line says so
LOOK = 1.0  # seconds between looks at the worker processes while a batch is waited for
GRACE = 10.0  # seconds that a batch in the making may take to end


class BatchIterator:
    """Prefetches one element of a Grain iterator in a thread.

    A wait of more than `PATIENCE` is reported on standard error, and again whenever it has doubled. Grain waits for
    ever where a worker process is stopped, or was killed while it wrote; the latter raises Preempted here.
    """

    def __init__(self, iterator: "grain.DatasetIterator"):
        self._iterator, self._closed = iterator, False
        self._workers: list[BaseProcess] = []
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
        self._thread = threading.Thread(target=self._pull, daemon=True)
        self._thread.start()

    def _pull(self) -> None:
        try:
            while not self._closed:
                self._ready.put((next(self._iterator), None))
        except BaseException as error:
            self._ready.put((None, error))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        element, error = self._wait()
        if not self._workers:
            self._find_workers()
        if error is not None:
            self._closed = True
            if "terminated unexpectedly with exit code -" in str(error):  # Grain has no class for it, only RuntimeError
                raise _killed() from error
            raise error
        return element

    def _wait(self) -> tuple[Any, BaseException | None]:
        start, due = time.perf_counter(), PATIENCE
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=LOOK)
            if any((worker.exitcode or 0) < 0 for worker in self._workers):  # ended by a signal
                with contextlib.suppress(queue.Empty):
                    return self._ready.get(timeout=3 * LOOK)  # Grain may recover or raise an error by itself
                raise _killed()
            self._find_workers()
            waited = time.perf_counter() - start
            if waited >= due:
                print(
                    f"no batch for {waited:.0f} s: reading the data is slow, or a process of the loader is stopped",
                    file=sys.stderr,
                    flush=True,
                )
                due = 2 * waited

    def _find_workers(self) -> None:
        children = multiprocessing.active_children()
        self._workers += [
            child for child in children if child.name.startswith("grain-process") and child not in self._workers
        ]

    def close(self) -> None:
        """Ends the threads and processes; those that hang are killed, or end with this process."""
        self._closed = True
        for _ in range(2):
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()  # so that the thread is not kept from ending
            self._thread.join(GRACE)
            if not self._thread.is_alive():
                self._iterator.close()
                return
            for worker in self._workers:
                worker.kill()


def _killed() -> Preempted:
    return Preempted(
        "a process of the data loader was killed, perhaps for lack of memory; the same command resumes from the last "
        "checkpoint"
    )
