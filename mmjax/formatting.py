"""Numbers and durations for human readers. Files keep SI units."""

import math
from typing import Any


def duration(seconds: float | int) -> str:
    """A duration in seconds as text: "48 s", "4 min 10 s", "3 h 5 min", "2 d 4 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def fine_duration(seconds: float | int) -> str:
    """Seconds of which parts count: "37 µs", "4.52 ms", "1.2 s", and from a minute on as `duration`."""
    if seconds >= 60:
        return duration(seconds)
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def number(value: Any) -> str:
    """A number as text: integers with separators, others to four digits, or "not finite"."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not finite"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    """A share of 1 as a percentage of three digits: "93.8 %", "100 %", "0.39 %"."""
    return f"{100 * share:.3g} %"


def count(value: float | int) -> str:
    """A large number with a letter for its thousands: "523", "1.2 M", "10 B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,}"


def binary_size(size: float | int) -> str:
    """Bytes in binary units: "812 B", "4.5 GiB"."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(size) >= 1024**power:
            return f"{size / 1024**power:.3g} {unit}"
    return f"{size:,.0f} B"
