"""Rows to global arrays on explicit meshes of 8 devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.data.batching.host_batch import HostBatch
from mmjax.data.device_batches import DevicePrefetcher, rows_of, to_global_arrays
from mmjax.data.loader import Loader
from mmjax.errors import UserError
from mmjax.types import Batch


def host_batch(step: int = 0, rows=range(16), size: int = 16) -> HostBatch:
    """A picture and a text whose first numbers are the row's place in the global batch, plus 100 a step."""
    rows = np.array(rows)
    number = rows + 100 * step
    batch = Batch(
        {
            "image": np.broadcast_to(number[:, None, None, None], (len(rows), 4, 4, 3)).astype(np.float32),
            "text": np.tile(number[:, None], (1, 5)).astype(np.int32),
        },
        {"text": np.ones((len(rows), 5), bool)},
        {"image": rows % 2 == 0, "text": np.ones(len(rows), bool)},
    )
    return HostBatch(step, size, rows, batch, tuple(f"train/{row}" for row in range(size)), (), 0.0)


class Steps(Loader):
    """A loader whose batches are made by `host_batch`."""

    def __init__(self):
        self.closed = False

    def iterate(self, start, stop, then=None):
        try:
            for step in range(start, stop):
                yield then(host_batch(step))
        finally:
            self.closed = True


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3)


def test_the_sharding_is_in_the_type(mesh):
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = to_global_arrays(host_batch(), sharding)
    found = jax.typeof(batch.values["image"])
    assert found.shape == (16, 4, 4, 3)
    assert found.sharding.spec == PartitionSpec(("data", "fsdp"), None, None, None)
    assert found.sharding.mesh.axis_types == (AxisType.Explicit,) * 3

    @jax.jit
    def total(batch):
        assert jax.typeof(batch.mask["text"]).sharding.spec == PartitionSpec(("data", "fsdp"), None)
        return batch.values["text"].sum()

    with jax.set_mesh(mesh):
        assert int(total(batch)) == 5 * sum(range(16))


@pytest.mark.parametrize("axes", [None, "data", ("data", "fsdp"), ("fsdp", "tensor"), ("data", "fsdp", "tensor")])
def test_every_device_has_its_rows(mesh, axes):
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    host = host_batch()
    batch = to_global_arrays(host, sharding)
    for found, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(host.batch), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        for shard in found.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])


class Part(jax.sharding.Sharding):
    """A sharding of which this process has the devices `mine`."""

    def __init__(self, sharding, mine):
        self.sharding, self.mine = sharding, mine

    def addressable_devices_indices_map(self, shape):
        everywhere = self.sharding.devices_indices_map(shape)
        return {device: index for device, index in everywhere.items() if device in self.mine}


@pytest.mark.parametrize("mine", [[4, 5, 6, 7], [2, 6], [1, 7]])
def test_a_process_with_a_part_of_the_rows_places_them(mesh, mine, monkeypatch):
    """Each of its devices is given its own rows of the global batch; asked as JAX would ask another process."""
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    part = Part(sharding, [mesh.devices.ravel()[index] for index in mine])
    given = []

    def ask(shape, sharding, callback):
        assert shape[0] == 16
        given.extend((index[0], callback(index)) for index in sharding.addressable_devices_indices_map(shape).values())
        return jax.numpy.zeros(())

    monkeypatch.setattr(jax, "make_array_from_callback", ask)
    to_global_arrays(host_batch(rows=rows_of(part, 16)), part)
    assert len(given) == 5 * len(mine)
    for rows, values in given[len(mine) : 2 * len(mine)]:
        np.testing.assert_array_equal(values[:, 0], np.arange(16)[rows])


def test_one_process_needs_all_rows(mesh):
    for axes in (None, "tensor", ("data", "fsdp")):
        np.testing.assert_array_equal(rows_of(NamedSharding(mesh, PartitionSpec(axes)), 16), np.arange(16))


def test_a_process_needs_the_rows_of_its_devices(mesh):
    """Another process's devices are stood in for by asking a sharding that says only some are at hand."""

    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    devices = list(mesh.devices.ravel())
    assert rows_of(Part(sharding, devices[:4]), 16).tolist() == list(range(8))
    assert rows_of(Part(sharding, devices[4:]), 16).tolist() == list(range(8, 16))
    assert rows_of(Part(sharding, devices[::2]), 16).tolist() == list(range(16))  # the other half are replicas
    assert rows_of(Part(sharding, devices[5:6]), 16).tolist() == list(range(8, 12))


def test_a_batch_that_the_mesh_does_not_divide(mesh):
    with pytest.raises(UserError, match="a batch of 6 cannot be split evenly over 4 parts"):
        rows_of(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 6)


def test_a_feed_gives_every_batch_in_order(mesh):
    steps = Steps()
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with DevicePrefetcher(steps, sharding, 3, 6) as feed:
        placed = list(feed)
        assert [each.host.step for each in placed] == [3, 4, 5]
        for each in placed:
            np.testing.assert_array_equal(each.batch.values["text"][:, 0], np.arange(16) + 100 * each.host.step)
        assert 0 < feed.last_wait <= feed.waited < 60
    assert steps.closed
    with DevicePrefetcher(steps := Steps(), sharding, 0, 10**9) as feed:
        next(feed)
    assert steps.closed
