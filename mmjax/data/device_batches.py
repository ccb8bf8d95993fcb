"""Host batches to global arrays on a mesh, one batch ahead of the step that reads it."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mmjax.data.batching.host_batch import HostBatch, empty_batch
from mmjax.data.batching.packing import Packing
from mmjax.data.loader import Loader
from mmjax.errors import UserError
from mmjax.types import Batch, Feature


def rows_of(sharding: jax.sharding.Sharding, batch_size: int) -> Int[np.ndarray, "R"]:
    """The rows of a global batch on this process's devices, ascending.

    Processes can share rows: along mesh axes other than the batch's each has a replica.
    """
    try:
        slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError:
        check_splits(batch_size, sharding.num_devices // max(1, _replicas(sharding)))
        raise
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in slices]))


def check_splits(batch_size: int, parts: int) -> None:
    """Raises UserError where the mesh does not divide the batch evenly."""
    if batch_size % parts:
        raise UserError(
            f"a batch of {batch_size} cannot be split evenly over {parts} parts of the mesh: use a multiple of {parts}"
        )


def _replicas(sharding: jax.sharding.Sharding) -> int:
    """The number of devices that hold the same rows."""
    parts = sharding.devices_indices_map((sharding.num_devices,)).values()
    return sharding.num_devices // len(set(map(str, parts)))


def to_global_arrays(host: HostBatch, sharding: jax.sharding.Sharding) -> Batch:
    """The global batch, sharded along its first dimension.

    Asynchronous, and without communication between processes.
    """

    def array(local: np.ndarray) -> jax.Array:
        # Several examples are in one row of a packed feature; those of a device are in its rows.
        size = host.size * len(local) // len(host.rows)

        def rows(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(size)
            at = np.searchsorted(host.rows, first * host.size // size) * len(local) // len(host.rows)
            return local[at : at + last - first]

        return jax.make_array_from_callback((size, *local.shape[1:]), sharding, rows)

    return jax.tree.map(array, host.batch)


def shapes(
    features: Mapping[str, Feature],
    size: int,
    sharding: jax.sharding.Sharding,
    packing: Packing | None = None,
    batch_size: int | None = None,
) -> Batch:
    """The shapes and shardings of `size` examples of a batch of `batch_size`, for compilation."""

    def shape(array: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(shape, empty_batch(features, size, packing, batch_size))


@dataclasses.dataclass(frozen=True)
class DeviceBatch:
    """A batch on the devices, and its host batch."""

    host: HostBatch
    batch: Batch


class DevicePrefetcher:
    """Batches `start` to `stop` of a loader on the devices, the next one placed while a step runs.

    A context manager and an iterator. `waited` is the total number of seconds its reader has waited for batches,
    `last_wait` those for the last one.
    """

    def __init__(self, loader: Loader, sharding: jax.sharding.Sharding, start: int, stop: int):
        self._batches = loader.iterate(start, stop, lambda host: DeviceBatch(host, to_global_arrays(host, sharding)))
        self.waited = self.last_wait = 0.0

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        start = time.perf_counter()
        placed = next(self._batches)
        self.last_wait = time.perf_counter() - start
        self.waited += self.last_wait
        return placed

    def close(self) -> None:
        """Ends the loader's threads and processes."""
        self._batches.close()

    def __enter__(self) -> "DevicePrefetcher":
        return self

    def __exit__(self, *_) -> None:
        self.close()
