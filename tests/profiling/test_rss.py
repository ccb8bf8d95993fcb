"""How far a process's memory rose is what was touched, though it be given back."""

import numpy as np
import pytest

from mmjax.profiling.profile.rss import watch_rss

SIZE = 256 * 2**20


def test_memory_that_was_given_back_counts():
    with watch_rss() as growth:
        for _ in range(2):
            np.ones(SIZE, np.uint8)
    assert growth.bytes == pytest.approx(SIZE, rel=0.02)


def test_memory_held_before_does_not_count():
    held = np.ones(SIZE, np.uint8)
    with watch_rss() as growth:
        held[:] = 2
    assert growth.bytes is not None
    assert growth.bytes < 0.02 * SIZE
