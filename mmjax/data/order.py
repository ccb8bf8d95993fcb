"""The order of training examples: the index at each position, a function of the seed."""

import zlib
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Order(Protocol):
    """The index of the example at each position of the training."""

    def __getitem__(self, position: int) -> int: ...


class ShuffledEpochs:
    """Every epoch is a new permutation of all examples, in constant memory."""

    def __init__(self, count: int, seed: int, name: str = "order"):
        """`name` separates the permutations of several sources under one seed."""
        import grain

        # Grain takes a 32-bit seed and adds the epoch to it; hashed, runs of neighbouring seeds do not share epochs.
        grain_seed = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
        self._order = grain.MapDataset.range(count).shuffle(seed=grain_seed).repeat()

    def __getitem__(self, position: int) -> int:
        return int(self._order[position])
