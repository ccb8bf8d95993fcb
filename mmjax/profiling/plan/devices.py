"""Rates of a topology's devices: published, measured, or reached in a profile."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from mmjax.config.experiment import Experiment
from mmjax.hardware.chips import CHIPS, Chip, find_chip
from mmjax.hardware.flops import peak_bandwidth, peak_flops
from mmjax.sharding.topology import HERE, Topology


@dataclasses.dataclass(frozen=True)
class MeasuredRates:
    """Rates that a step's kernels reach on a machine: products in FLOP/s, others in bytes/s."""

    flops: float
    bandwidth: float

    @staticmethod
    def of(profile: Mapping[str, Any]) -> "MeasuredRates":
        """From profile.json. Gaps between kernels count as theirs, overlapping work counts once."""
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
    """The chip of a topology's device; where JAX shows a chip as several devices, its share."""
    chip, parts = CHIPS[topology.generation], devices // topology.chips
    if parts == 1 or chip.name == "tpu7x":
        return chip
    rates = {name: getattr(chip, name) / parts for name in ("flops", "hbm", "ici", "dcn")}
    return dataclasses.replace(chip, hbm_bytes=chip.hbm_bytes // parts, **rates)


def local_chip(experiment: Experiment, rates: MeasuredRates | None) -> Chip:
    """A device of this process: by published, measured (CPU), or reached rates."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    if rates is None:
        rates = MeasuredRates(peak_flops(experiment.model.dtype)[0], peak_bandwidth())
    chip = find_chip(device.device_kind)
    if chip is None:
        chip = Chip(HERE, (device.device_kind,), 0.0, 0, 0.0, ici=rates.bandwidth, links=1, dcn=rates.bandwidth)
    return dataclasses.replace(chip, flops=rates.flops, hbm_bytes=memory, hbm=rates.bandwidth)
