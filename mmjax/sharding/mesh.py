"""Device meshes of this machine, with one slice or several."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from mmjax.errors import UserError
from mmjax.sharding.rules import MESH_AXES, PRESETS, Rules


@chz.chz
class MeshShape:
    """Devices along each mesh axis; one of them may be -1: all that remain."""

    replica: int = chz.field(default=1, doc="copies of the whole, one per slice of a multi-slice pod")
    data: int = chz.field(default=-1, doc="data parallelism: the batch is sharded, parameters are replicated")
    fsdp: int = chz.field(default=1, doc="data parallelism with sharded parameters and optimizer state")
    expert: int = chz.field(default=1, doc="expert parallelism: the experts of a sparse mixture are sharded")
    tensor: int = chz.field(default=1, doc="tensor parallelism: heads and hidden units are sharded")

    @chz.validate
    def _sizes(self) -> None:
        sizes = self.sizes
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"mesh sizes must be positive, with at most one -1, not {self.text}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Devices per axis in the order of `MESH_AXES`."""
        return (self.replica, self.data, self.fsdp, self.expert, self.tensor)

    @property
    def text(self) -> str:
        """The axes that are not 1, as written on a command line."""
        pairs = zip(MESH_AXES, self.sizes, strict=True)
        return " ".join(f"mesh.{axis}={size}" for axis, size in pairs if size != 1) or "one device"

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """An explicit-mode mesh over `devices`, or descriptions of them (default: all).

        Raises UserError where the sizes are not possible.
        """
        devices = list(devices) if devices is not None else jax.devices()
        sizes = self.resolve(len(devices))
        count = math.prod(sizes)
        if count < len(devices) and jax.process_count() > 1:
            raise UserError(
                f"{self.text} uses {count} of {len(devices)} devices; with several processes set one axis to -1"
            )
        devices = devices[:count]
        slices = count_slices(devices)
        if slices > 1:
            return self._hybrid(sizes, devices, slices)
        from jax.experimental import mesh_utils

        try:
            grid = mesh_utils.create_device_mesh(sizes, devices)
        except NotImplementedError:  # no axis is a product of whole dimensions of the torus
            grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=(AxisType.Explicit,) * len(sizes))

    def resolve(self, available: int) -> tuple[int, ...]:
        """Devices per axis for this many devices; raises UserError where that is not possible."""
        fixed = math.prod(size for size in self.sizes if size != -1)
        if fixed > available:
            raise UserError(
                f"{self.text} needs {fixed} devices, but there are {available}; lower one of the mesh sizes"
            )
        if -1 in self.sizes and available % fixed:
            raise UserError(f"{self.text} does not divide the {available} devices; choose sizes whose product does")
        return tuple(available // fixed if size == -1 else size for size in self.sizes)

    def _hybrid(self, sizes: tuple[int, ...], devices: list[Any], slices: int) -> Mesh:
        """A mesh over several slices; its replica or else data axis crosses the network between them."""
        from jax.experimental import mesh_utils

        outer = [1] * len(sizes)
        crossing = 0 if sizes[0] % slices == 0 else 1
        if sizes[crossing] % slices:
            raise UserError(f"{slices} slices must divide mesh.replica or mesh.data; set mesh.replica={slices}")
        outer[crossing] = slices
        inner = [size // out for size, out in zip(sizes, outer, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices=devices, allow_split_physical_axes=True)
        return Mesh(np.asarray(grid), MESH_AXES, axis_types=(AxisType.Explicit,) * len(sizes))


def count_slices(devices: Iterable[Any]) -> int:
    """The number of TPU slices of the devices; other devices count as one."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def abstract_mesh(sizes: Sequence[int]) -> AbstractMesh:
    """An abstract mesh with these axis sizes."""
    return AbstractMesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def current_mesh() -> Mesh | AbstractMesh:
    """The current mesh; an abstract one if it has no devices."""
    mesh = jax.sharding.get_mesh()
    return jax.sharding.get_abstract_mesh() if mesh.empty else mesh


def choose_rules(name: str, mesh: Mesh | AbstractMesh) -> Rules:
    """The preset rules of that name.

    Raises UserError where it is unknown or does not use a mesh axis of several devices.
    """
    if name not in PRESETS:
        raise UserError(f"rules={name} is not a preset; choose one of {', '.join(PRESETS)}")
    rules = PRESETS[name]
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in rules.axes():
            able = [other for other, table in PRESETS.items() if axis in table.axes()]
            raise UserError(
                f"mesh.{axis}={size} but rules={name} shards nothing over it; choose rules={' or '.join(able)}"
            )
    return rules


def shard_bytes(tree: Any) -> int:
    """Bytes per device of a tree of arrays or of shapes with shardings; random keys are not counted."""
    return sum(
        math.prod(leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for sharding in [getattr(leaf, "sharding", None)]
    )
