"""What a traced run did, and when: the instructions of a program on each device, from the profiler's own file."""

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
    """Has the profiler write what happens into the folder while the context is open, Python's own calls left out."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return jax.profiler.trace(str(folder), profiler_options=options)


def read(folder: Path, program: str) -> list[Event]:
    """What the instructions of the program of that name did, in the newest trace under `folder`."""
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    return sorted(_events(data, program), key=lambda event: event.begin)


def _events(data: Any, program: str) -> Iterator[Event]:
    for plane in data.planes:
        found = re.match(r"/device:(GPU|TPU):(\d+)", plane.name)
        if found is None and plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            # What a GPU ran is told by stream, what a TPU ran in one line; other lines say the same once more.
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


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time in intervals that do not touch."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Seconds that lie in at least one of them."""
    return sum(end - begin for begin, end in merged(intervals))


def without(intervals: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Seconds that lie in one of the intervals and in none of the others."""
    mine, theirs = list(intervals), list(others)
    return length([*mine, *theirs]) - length(theirs)


def by_device(events: Iterable[Event]) -> dict[int, list[Event]]:
    """The events of each device."""
    found: dict[int, list[Event]] = collections.defaultdict(list)
    for event in events:
        found[event.device].append(event)
    return dict(found)
