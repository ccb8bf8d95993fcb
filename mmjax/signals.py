"""Being asked to stop, by SIGTERM or Ctrl-C, and stopping where nothing is lost."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Note:
    """A handler that remembers what came, and no more; a second SIGINT is again what it was before."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.before = {number: signal.signal(number, self) for number in SIGNALS}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        if number == signal.SIGINT:
            print("stopping where nothing is lost; once more ends at once", file=sys.stderr, flush=True)
            signal.signal(number, self.before[signal.SIGINT])


@contextlib.contextmanager
def heed_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM and a first SIGINT do not kill: the function given tells whether one came.

    Inside another such block it is that one's, so that what comes too late for one part of a command stops the next.
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
