"""SIGTERM and Ctrl-C: stopping a run without losing work."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mmjax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 75
STOPPED = "stopped before the first step, where nothing is lost; the same command starts again"


class _Note:
    """A signal handler that records signals; a second SIGINT has its previous effect."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.before = {number: signal.signal(number, self) for number in SIGNALS}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if number == signal.SIGINT:
            print("stopping where nothing is lost; once more ends at once", file=sys.stderr, flush=True)
            signal.signal(number, self.before[signal.SIGINT])


@contextlib.contextmanager
def preemption_guard() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM and a first SIGINT do not kill; the yielded function says if one came.

    A nested block shares the outer one's record, so that a signal too late for one part of a command stops the next.
    """
    outer = signal.getsignal(signal.SIGTERM)
    if isinstance(outer, _Note):
        yield lambda: bool(outer.came)
        return
    note = _Note()
    try:
        yield lambda: bool(note.came)
    finally:
        for number, handler in note.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """While inside, SIGTERM and SIGINT end the process at once with exit code 75.

    For phases in which nothing can be lost: Python's own handlers wait for the main thread, which may be compiling for
    minutes. Raises Preempted where `preemption_guard` has already recorded a signal.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Note) and handler.came:
        raise Preempted(STOPPED)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while number := os.read(reader, 1):  # nothing is read once the other end is closed
            if number[0] in SIGNALS:
                print(STOPPED, file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
        os.close(reader)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
