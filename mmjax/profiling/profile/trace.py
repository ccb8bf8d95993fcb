"""Events of a profiler trace: the instructions of a program on each device."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of an instruction on a device; seconds on the profiler's clock."""

    name: str
    device: int
    begin: float
    end: float


def record(folder: Path) -> Any:
    """Records a profiler trace into the folder while the context is open, without Python calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return jax.profiler.trace(str(folder), profiler_options=options)


def read(folder: Path, program: str) -> list[Event]:
    """The events of the program of that name in the newest trace under `folder`."""
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    return sorted(_events(data, program), key=lambda event: event.begin)


def _events(data: Any, program: str) -> Iterator[Event]:
    for plane in data.planes:
        found = re.match(r"/device:(GPU|TPU):(\d+)", plane.name)
        if found is None and plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            # A GPU's events are listed by stream, a TPU's in one line; other lines repeat them.
            if found and not line.name.startswith({"GPU": "Stream", "TPU": "XLA Ops"}[found.group(1)]):
                continue
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name is None and found and found.group(1) == "TPU":
                    name = event.name.partition(" = ")[0].removeprefix("%")
                if name is None or stats.get("hlo_module", program).partition("(")[0] != program:
                    continue
                device = int(found.group(2)) if found else int(stats.get("device_ordinal", 0))
                begin = event.start_ns / 1e9
                yield Event(str(name), device, begin, begin + event.duration_ns / 1e9)


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as disjoint intervals."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def total_length(intervals: Iterable[Interval]) -> float:
    """Seconds covered by at least one of the intervals."""
    return sum(end - begin for begin, end in merge(intervals))


def subtract(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Seconds covered by the intervals and by none of the others."""
    mine, theirs = list(intervals), list(others)
    return total_length([*mine, *theirs]) - total_length(theirs)


def by_device(events: Iterable[Event]) -> dict[int, list[Event]]:
    """The events by device."""
    found: dict[int, list[Event]] = collections.defaultdict(list)
    for event in events:
        found[event.device].append(event)
    return dict(found)
