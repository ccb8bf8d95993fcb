"""What the devices of a topology can do: by the table, by measuring, or by what a profile's kernels reached."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from mmjax.config.experiment import Experiment
from mmjax.hardware.chips import CHIPS, Chip, chip_of
from mmjax.hardware.flops import peak_bytes, peak_flops
from mmjax.sharding.topology import HERE, Topology


@dataclasses.dataclass(frozen=True)
class MeasuredRates:
    """What kernels of a step reach on a machine: products in FLOP/s, all others in bytes/s."""

    flops: float
    bandwidth: float

    @staticmethod
    def of(profile: Mapping[str, Any]) -> "MeasuredRates":
        """By a profile.json. What passes between kernels counts as theirs, what they do at once as one's."""
        ideal, taken = [0.0, 0.0], [0.0, 0.0]
        for kernel in profile["kernels"]:
            limits = kernel["flops"] / profile["peak_flops"], kernel["bytes"] / profile["peak_bandwidth"]
            kind = int(limits[1] > limits[0])
            ideal[kind] += limits[kind]
            taken[kind] += kernel["seconds"]
        stretch = profile["step_seconds"] / sum(taken)
        flops, bandwidth = (
            part / seconds / stretch if seconds else 1.0 for part, seconds in zip(ideal, taken, strict=True)
        )
        return MeasuredRates(flops * profile["peak_flops"], bandwidth * profile["peak_bandwidth"])


def chip_of_topology(topology: Topology, devices: int) -> Chip:
    """What a device of the topology is; a description may show a chip as several, each of which has its part of it."""
    chip, parts = CHIPS[topology.generation], devices // topology.chips
    if parts == 1 or chip.name == "tpu7x":
        return chip
    rates = {name: getattr(chip, name) / parts for name in ("flops", "hbm", "ici", "dcn")}
    return dataclasses.replace(chip, hbm_bytes=chip.hbm_bytes // parts, **rates)


def chip_here(experiment: Experiment, reached: MeasuredRates | None) -> Chip:
    """A device of this process by its published figures, of a CPU by measured ones; or by what is reached."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    if reached is None:
        reached = MeasuredRates(peak_flops(experiment.model.dtype)[0], peak_bytes())
    chip = chip_of(device.device_kind)
    if chip is None:
        chip = Chip(HERE, (device.device_kind,), 0.0, 0, 0.0, ici=reached.bandwidth, links=1, dcn=reached.bandwidth)
    return dataclasses.replace(chip, flops=reached.flops, hbm_bytes=memory, hbm=reached.bandwidth)
