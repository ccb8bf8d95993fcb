"""Compilation targets: the devices of this process, or TPU slices that are only described."""

import dataclasses
import math
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from mmjax.errors import UserError

# What can be rented of each generation (cloud.google.com/tpu/docs/v4 and so on); larger ones come in several slices.
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v4": DEEP, "v5e": FLAT, "v5p": (*DEEP, "16x16x24"), "v6e": FLAT, "tpu7x": DEEP}
# The generation of the devices of this process, whatever they are.
HERE = "here"
# What libtpu then need not look for on the network: it is on a host that has no TPU, or is to describe other ones.
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of a TPU generation, each a grid or torus with this many chips per dimension."""

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """The number of chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def name(self) -> str:
        """Its name: "v5e:16x16", "4 x v5e:16x16" for several slices, or "here"."""
        if self.generation == HERE:
            return HERE
        shape = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        return shape if self.slices == 1 else f"{self.slices} x {shape}"

    def is_ring(self, dimension: int) -> bool:
        """Whether the chips along a dimension form a ring: 16 in a plane, multiples of 4 in a torus."""
        size = self.shape[dimension]
        return size == 16 if len(self.shape) == 2 else size % 4 == 0

    def check(self) -> None:
        """Raises UserError where the compiler for it is not installed."""
        try:
            if self.generation != HERE:
                version("libtpu")
        except PackageNotFoundError as error:
            raise UserError(
                f"compiling for {self.name} needs libtpu, and not a TPU: pip install -e '.[plan]', or plan for "
                "topology=here"
            ) from error

    def devices(self) -> list[Any]:
        """Its devices or descriptions of them, to build a mesh of.

        Raises UserError where libtpu, which compiles for TPUs, is not installed or does not know these.
        """
        if self.generation == HERE:
            return list(jax.devices())
        self.check()
        # Several processes may compile at once.
        for name, value in (ALONE | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}).items():
            os.environ.setdefault(name, value)
        from jax.experimental import topologies

        try:
            options = {} if self.slices == 1 else {"num_slices": self.slices}
            shape = dataclasses.replace(self, slices=1).name
            return list(topologies.get_topology_desc(platform="tpu", topology_name=shape, **options).devices)
        except Exception as error:  # the plugin raises nothing more exact
            reason = str(error).splitlines()[0]
            raise UserError(f"libtpu {version('libtpu')} cannot describe {self.name}: {reason}") from error


def silence_libtpu() -> None:
    """Stops an installed libtpu, which JAX always tries, from warning about a missing TPU."""
    # On import JAX sets the one where it finds no TPU on the PCI bus, and the other where it does.
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1" and not jax.config.jax_platforms:  # type: ignore[attr-defined]
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)


def parse_topology(text: str, slices: int = 1) -> Topology:
    """The topology named "v5e:16x16" or "here"; raises UserError, listing all, for other names."""
    if text == HERE:
        if slices > 1:
            raise UserError(f"slices={slices} needs a TPU topology; topology={HERE} means the devices of this process")
        return Topology(HERE, (jax.device_count(),))
    generation, _, shape = text.partition(":")
    if generation not in SHAPES:
        raise UserError(f"topology={text}: there is no TPU {generation}; choose one of {', '.join(SHAPES)}, and {HERE}")
    if shape not in SHAPES[generation]:
        known = ", ".join(SHAPES[generation])
        wrong = (
            f"no slice of {generation} has that shape"
            if shape
            else f"say its chips, as in {generation}:{SHAPES[generation][0]}"
        )
        raise UserError(f"topology={text}: {wrong}; there are {known}")
    return Topology(generation, tuple(map(int, shape.split("x"))), slices)
