"""Figures in words for a human reader. Files keep SI units; this is for screens and pages."""

import math
from typing import Any


def duration(seconds: float | int) -> str:
    """Seconds for a reader: "48 s", "4 min 10 s", "3 h 5 min", "2 d 4 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def number(value: Any) -> str:
    """A figure for a reader: whole numbers with separators, others to four digits, None and NaN in words."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not finite"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    return f"{value:.4g}"
