"""Growth of the process's resident memory, measured independently of the compiler."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")
# Sets the high-water mark of the process's resident memory back to what it holds (proc(5)).
FORGET_PEAK = "5"


class RssGrowth:
    """The growth of the peak resident memory in bytes; None where the system does not report it."""

    bytes: int | None = None


@contextlib.contextmanager
def watch_rss() -> Iterator[RssGrowth]:
    """Measures, on Linux, how far the process's resident memory rises while the context is open."""
    growth = RssGrowth()
    try:
        # Memory that was freed but not given back would be taken again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text(FORGET_PEAK)
        before = _bytes("VmRSS")
    except (OSError, AttributeError):
        yield growth
        return
    yield growth
    growth.bytes = _bytes("VmHWM") - before


def _bytes(name: str) -> int:
    """A size of the process by its name in /proc/self/status, which is in KiB."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
