"""Batches with packed features: the loader's examples in rows, for any process, at any step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.batching.host_batch import HostBatch
from mmjax.data.batching.packing import PackedRows, Packing
from mmjax.data.device_batches import rows_of, shapes, to_global_arrays
from mmjax.data.loader import Loader
from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.layers.packed import unpack_batch
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch
from tests.data.examples import data

COUNT, SIZE, RULES = 61, 16, PRESETS["data"]
# A caption and a recording have lengths of their own; one of each is missing.
BROKEN = {
    index: {"caption": "w" * (index % 20 + 1), "speech": Recording(np.ones(80 * (index % 9) + 40, np.int16), 8000)}
    for index in range(COUNT)
} | {5: {"caption": None}, 6: {"speech": None}}
ROWS = {"text": PackedRows(length=30), "speech": PackedRows(length=24, multiple=2)}


@pytest.fixture
def packed(tmp_path):
    """Makes a loader of packed batches."""

    def loader(*, seed=3, rows=None, parts=2, workers=0, **options) -> Loader:
        packing = Packing(features=ROWS, window=4, parts=parts, **options)
        given = data(broken=BROKEN, count=COUNT, packing=packing, workers=workers)
        return Loader(given.fit_packing(str(tmp_path), SIZE, 100), str(tmp_path), "train", SIZE, seed=seed, rows=rows)

    return loader


def padded(host: HostBatch) -> Batch:
    return jax.tree.map(np.asarray, unpack_batch(jax.tree.map(jnp.asarray, host.batch), RULES))


def test_a_packed_batch_holds_what_its_examples_are(packed, tmp_path):
    """Each example's values are those that a loader without packing reads at the same position."""
    together = packed()
    plain = Loader(data(broken=BROKEN, count=COUNT), str(tmp_path), "train", SIZE, seed=3)
    one_by_one = {}
    for step in range(8):
        host = plain.batch(step)
        for place, id in enumerate(host.ids):
            one_by_one[step * SIZE + place, id] = jax.tree.map(lambda leaf, at=place: leaf[at], host.batch)
    for step in range(8):
        host = together.batch(step)
        assert host.ids == together.ids(step)
        batch, positions = padded(host), together._positions(step)
        for place, id in enumerate(host.ids):
            wanted = one_by_one.pop((positions[place], id))
            for name in wanted.values:
                assert batch.present[name][place] == wanted.present[name], (name, id)
                np.testing.assert_array_equal(batch.values[name][place], wanted.values[name], f"{name} of {id}")
                if name in wanted.mask:
                    np.testing.assert_array_equal(batch.mask[name][place], wanted.mask[name], f"{name} of {id}")
        assert host.cut == 0
        used = {name: int(host.batch.packed[name].lengths.sum()) for name in host.batch.packed}
        sizes = {name: host.batch.mask[name].size for name in used}
        assert host.fill == pytest.approx({name: used[name] / sizes[name] for name in used})
    assert not one_by_one  # each example of the windows exactly once


def test_fewer_examples_than_slots(packed):
    """Each of the window's examples is in one step, and a slot without one is not an example."""
    loader = packed(examples=12)
    hosts = [loader.batch(step) for step in range(4, 8)]
    ids = [id for host in hosts for id in host.ids if id]
    assert len(ids) == 48
    assert ids != [id for host in hosts for id in host.ids]
    order = [loader.records.id(loader.order[position]) for position in range(48, 96)]
    assert sorted(ids) == sorted(order)
    for host in hosts:
        assert [bool(id) for id in host.ids] == host.real.tolist() == host.batch.present["label"].tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_each_process_has_its_parts(packed, processes):
    """The rows of every process together are the global batch, on devices as on the host."""
    whole = packed(parts=4).batch(6)
    with jax.set_mesh(MeshShape(data=4).build(jax.devices()[:4])):
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch"))
        placed = to_global_arrays(whole, sharding)
        described = shapes(packed(parts=4).data.features, SIZE, sharding, packed(parts=4).data.packing, SIZE)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), placed) == jax.tree.map(
            lambda a: (a.shape, a.dtype), described
        )
        assert rows_of(sharding, SIZE).tolist() == [*range(SIZE)]
        on_devices = jax.jit(lambda batch: unpack_batch(batch, RULES))(placed)
    wanted = padded(whole)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, on_devices), wanted)
    parts = [packed(parts=4, rows=rows).batch(6) for rows in np.split(np.arange(SIZE), processes)]
    assert all(part.ids == whole.ids for part in parts)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(padded(part) for part in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, wanted)


def test_worker_processes_pack_alike(packed):
    for one, other in zip(packed().iterate(2, 7), packed(workers=2).iterate(2, 7), strict=True):
        assert one.ids == other.ids
        assert (one.fill, one.cut) == (other.fill, other.cut)
        jax.tree.map(np.testing.assert_array_equal, one.batch, other.batch)


def test_evaluation_is_not_packed(packed):
    host = packed(seed=None).batch(1)
    assert not host.batch.packed
    assert host.batch.values["text"].shape == (SIZE, 24)


def test_rows_do_not_depend_on_the_seed(packed):
    rows = {name: each.rows for name, each in packed(seed=1).data.packing.features.items()}
    assert rows == {name: each.rows for name, each in packed(seed=2).data.packing.features.items()}
    assert all(rows.values())


def test_parts_that_a_mesh_does_not_split_alike(packed):
    with pytest.raises(UserError, match=r"loads 4 examples of a batch of 16, .* data.packing.parts to a multiple of 4"):
        packed(rows=np.arange(4))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"text": PackedRows(length=8)},
            r"data.packing.features.text.length=8 is shorter than an example of 2. positions",
        ),
        ({"text": PackedRows(length=30, rows=2)}, r"a batch takes 1.. positions of text on average.* set rows to"),
        (
            {"image": PackedRows(length=30)},
            r"data.packing.features.image: a feature of the kind Image is not a sequence",
        ),
    ],
)
def test_wrong_rows_are_refused(tmp_path, features, message):
    given = data(broken=BROKEN, count=COUNT, packing=Packing(features=features))
    with pytest.raises(UserError, match=message):
        given.fit_packing(str(tmp_path), SIZE, 100)
