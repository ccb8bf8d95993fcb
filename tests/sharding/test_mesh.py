"""Meshes of the eight simulated devices, and what is said of those that are not possible."""

import dataclasses

import jax
import pytest
from jax.sharding import AxisType

from mmjax.errors import UserError
from mmjax.sharding.mesh import MeshShape, choose_rules
from mmjax.sharding.rules import MESH_AXES, PRESETS, Rules


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (1, 8, 1, 1, 1)),
        (MeshShape(data=2, fsdp=2, tensor=2), (1, 2, 2, 1, 2)),
        (MeshShape(data=1, fsdp=-1, tensor=2), (1, 1, 4, 1, 2)),
        (MeshShape(replica=2, expert=2), (2, 2, 1, 2, 1)),
        (MeshShape(data=1), (1, 1, 1, 1, 1)),
        (MeshShape(expert=2), (1, 4, 1, 2, 1)),
        (MeshShape(data=3), (1, 3, 1, 1, 1)),
    ],
)
def test_sizes(shape, sizes):
    mesh = shape.build()
    assert tuple(mesh.shape.items()) == tuple(zip(MESH_AXES, sizes, strict=True))
    assert mesh.axis_types == (AxisType.Explicit,) * 5
    assert len(set(mesh.devices.flat)) == mesh.size


def test_devices_may_be_given():
    devices = jax.devices()[4:]
    assert list(MeshShape(fsdp=2).build(devices).devices.flat) == devices


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (MeshShape(data=4, tensor=4), "mesh.data=4 mesh.tensor=4 needs 16 devices, but there are 8"),
        (MeshShape(tensor=16), "needs 16 devices, but there are 8"),
        (MeshShape(tensor=3), "mesh.tensor=3 does not divide the 8 devices"),
    ],
)
def test_too_few_devices(shape, says):
    with pytest.raises(UserError) as error:
        shape.build()
    assert says in one_line(error)


@pytest.mark.parametrize("sizes", [{"data": -1, "fsdp": -1}, {"tensor": 0}, {"replica": -2}])
def test_sizes_that_mean_nothing(sizes):
    """A ValueError of a configuration node, which the command line turns into the user's line."""
    with pytest.raises(ValueError, match="at most one -1") as error:
        MeshShape(**sizes)
    assert all(f"mesh.{axis}={size}" in one_line(error) for axis, size in sizes.items())


def test_several_processes_leave_no_device_out(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="uses 4 of 8 devices") as error:
        MeshShape(data=4).build()
    assert "-1" in one_line(error)


def test_an_axis_without_work_is_an_error():
    with pytest.raises(UserError, match="choose rules=tensor or fsdp_tensor") as error:
        choose_rules("fsdp", MeshShape(tensor=2).build())
    one_line(error)


def test_every_axis_is_split_over_by_some_rules():
    assert set(MESH_AXES) == set().union(*(rules.axes() for rules in PRESETS.values()))
    assert all(any(getattr(rules, name.name) for rules in PRESETS.values()) for name in dataclasses.fields(Rules))


def test_rules_are_chosen_by_name():
    assert choose_rules("fsdp_tensor", MeshShape(fsdp=2, tensor=2).build()) is PRESETS["fsdp_tensor"]
    with pytest.raises(UserError, match="rules=zero is not a preset; choose one of data, fsdp") as error:
        choose_rules("zero", MeshShape().build())
    one_line(error)


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a device as the layout of a mesh looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


CHIPS = [Chip(id=index, slice_index=index // 4) for index in range(8)]


@pytest.mark.parametrize(
    ("shape", "crossing"), [(MeshShape(replica=2, fsdp=4, data=1), 0), (MeshShape(data=4, fsdp=2), 1)]
)
def test_only_replica_or_data_crosses_slices(shape, crossing):
    grid = shape.build(CHIPS).devices
    assert grid.shape == shape.sizes
    half = grid.shape[crossing] // 2
    first, second = grid.take(range(half), crossing), grid.take(range(half, 2 * half), crossing)
    assert {chip.slice_index for chip in first.flat} == {0}
    assert {chip.slice_index for chip in second.flat} == {1}


def test_slices_that_nothing_can_cross():
    with pytest.raises(UserError, match=r"2 slices must divide mesh\.replica or mesh\.data") as error:
        MeshShape(data=1, fsdp=8).build(CHIPS)
    one_line(error)
