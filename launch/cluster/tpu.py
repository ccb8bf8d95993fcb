"""TPU slices: their names, and the slices that a number of nodes makes."""

import dataclasses
import math
import re

from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU generation: its names at GKE and Cloud TPU, whose slice types count `cores` per chip."""

    gke: str
    type: str
    cores: int
    runtime: str
    topologies: tuple[str, ...]
    """Of the slices that are usual, one for each number of chips."""


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16", "8x16x16", "16x16x16"),
)

TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base", _CUBES),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", _FLAT),
    "v5p": Tpu("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", _CUBES),
    "v6e": Tpu("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """`count` slices of `topology`, each of `hosts` machines."""

    tpu: Tpu
    topology: str
    count: int
    hosts: int

    @property
    def chips(self) -> int:
        """Chips of one slice."""
        return _chips(self.topology)

    @property
    def usual(self) -> bool:
        """Whether Cloud TPU makes this topology when it is only told the number of chips."""
        return self.topology in self.tpu.topologies


def slices(accelerator: str, nodes: int, devices: int, topology: str | None) -> Slices:
    """The slices of `nodes` machines with `devices` chips each: of `topology`, or a single one.

    Raises:
        UserError: no such slice exists, or the nodes do not make whole ones.
    """
    tpu, total = TPUS[accelerator], nodes * devices
    if topology is None:
        topology = next((known for known in tpu.topologies if _chips(known) == total), None)
        if topology is None:
            sizes = ", ".join(str(_chips(known)) for known in tpu.topologies)
            raise UserError(
                f"nodes={nodes} with devices={devices} make {total} chips, and {accelerator} slices have {sizes}: "
                "name the topology of one of several slices"
            )
    dimensions = tpu.topologies[0].count("x") + 1
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), topology):
        raise UserError(f"topology={topology}: {accelerator} has {dimensions} dimensions, as {tpu.topologies[-1]}")
    chips = _chips(topology)
    whole = 8 if topology == "2x4" and devices == 8 else min(chips, 4)
    if devices != whole:
        raise UserError(f"devices={devices}: a machine of an {accelerator} slice of {topology} has {whole} chips")
    if total % chips:
        raise UserError(
            f"nodes={nodes} with devices={devices} make {total} chips, not whole slices of {topology} ({chips})"
        )
    return Slices(tpu, topology, total // chips, chips // devices)


def _chips(topology: str) -> int:
    return math.prod(int(size) for size in topology.split("x"))
