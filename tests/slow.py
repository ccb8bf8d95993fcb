"""Parameters of tests that take long."""

from collections.abc import Iterable

import pytest


def slow_but(names: Iterable[str], *kept: str) -> list:
    """The names as parameters; those that are not kept run with --slow only."""
    return [pytest.param(name, marks=[] if name in kept else [pytest.mark.slow]) for name in names]
