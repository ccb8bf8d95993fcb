"""Published rates and memory sizes of accelerators."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device of an accelerator: rates in FLOP/s and bytes/s, memory in bytes.

    `flops` is dense bfloat16. `links` is the number of neighbours of a device in its slice's torus or switch, `ici`
    what it sends to all of them at once, in one direction; `dcn` its share of its host's bandwidth to other slices.
    `fast_8bit` lists the 8-bit types ("s8", "f8") that it multiplies at twice the rate.
    """

    name: str
    kinds: tuple[str, ...]
    """How JAX calls the device (`device_kind`); of GPUs the start of that."""
    flops: float
    hbm_bytes: int
    hbm: float
    ici: float
    links: int
    dcn: float
    fast_8bit: tuple[str, ...] = ()

    def speedup(self, kind: str) -> int:
        """The speed-up over bfloat16 of products of this HLO element type."""
        return 2 if kind[:2] in self.fast_8bit else 1


# TPU: the table of each version's page (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x): peak compute per chip in
# BF16, HBM capacity and bandwidth, half of the "bidirectional inter-chip interconnect bandwidth per chip", data centre
# network bandwidth per chip (v5e: 6.4 Tbps a pod of 256; v6e: 25.6). Of v4 Jouppi et al. 2023, table 4, tell the links,
# 6 of 50 GB/s; a quarter of its host's two NICs of 100 Gbps is taken for the rest. A torus of v4, v5p and TPU7x has 6
# neighbours, one of v5e and v6e 4. A TPU7x chip shows itself as two devices, one for each of its chiplets, each of
# which has half.
# NVIDIA: the data sheets, half of each figure that is given "with sparsity": A100 312 TFLOP/s (SXM, PCIe); H100 SXM
# 1979/2, PCIe 1513/2, NVL 1671/2; H200 SXM 1979/2, NVL 1671/2; B200 from HGX B200, 36 PFLOP/s with sparsity on 8 GPUs.
# Half of NVLink's bandwidth, which counts both ways; a GPU's share of the network is one NIC of 400 Gbps (A100: 200)
# a GPU, as in DGX machines. All double their rate with INT8, and from the H100 on with FP8.
TPUS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 300e9, 6, 50e9 / 8),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, 4, 25e9 / 8, ("s8",)),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, 6, 50e9 / 8, ("s8",)),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, 4, 100e9 / 8, ("s8",)),
    Chip("tpu7x", ("TPU7x",), 2307e12 / 2, 96 * GIB, 7380e9 / 2, 600e9 / 2, 6, 100e9 / 8 / 2, ("f8",)),
)
GPUS = (
    Chip("a100", ("NVIDIA A100",), 312e12, 80 * GIB, 2039e9, 300e9, 1, 200e9 / 8, ("s8",)),
    Chip("h100", ("NVIDIA H100",), 1979e12 / 2, 80 * GIB, 3350e9, 450e9, 1, 400e9 / 8, ("s8", "f8")),
    Chip("h100-pcie", ("NVIDIA H100 PCIe",), 1513e12 / 2, 80 * GIB, 2000e9, 300e9, 1, 400e9 / 8, ("s8", "f8")),
    Chip("h100-nvl", ("NVIDIA H100 NVL",), 1671e12 / 2, 94 * GIB, 3900e9, 300e9, 1, 400e9 / 8, ("s8", "f8")),
    Chip("h200", ("NVIDIA H200",), 1979e12 / 2, 141 * 10**9, 4800e9, 450e9, 1, 400e9 / 8, ("s8", "f8")),
    Chip("h200-nvl", ("NVIDIA H200 NVL",), 1671e12 / 2, 141 * 10**9, 4800e9, 450e9, 1, 400e9 / 8, ("s8", "f8")),
    Chip("b200", ("NVIDIA B200",), 36e15 / 2 / 8, 180 * 10**9, 8000e9, 900e9, 1, 400e9 / 8, ("s8", "f8")),
)
CHIPS = {chip.name: chip for chip in (*TPUS, *GPUS)}


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a JAX device kind; None if it is unknown or a slice of a GPU (MIG)."""
    if "MIG" in device_kind:
        return None
    tpu = [chip for chip in TPUS if device_kind in chip.kinds]
    gpu = [chip for chip in GPUS if device_kind.startswith(chip.kinds)]
    longest = sorted(gpu, key=lambda chip: len(chip.kinds[0]))
    return next(iter(tpu + longest[-1:]), None)


# Chips that have cores of their own for communication and use them only when told. By the course of a compiled program
# a step of perceptrons over 16 chips then takes 0.88 (v5p) and 0.75 (v6e) of the time.
APART = ("v5p", "v6e")

# Between slices the compiler sends beside a loop's next turn, for which it takes turns out of loops and copies what
# they make. Chips of small memory are not to: on four slices of v5e `pretrain_10b` takes 12.4 GiB instead of 15.1,
# compiles in five sixths of the time, and by the course of the program is as quick. A small model, which waits for
# slices, loses 1% of its time.
NARROW = ("v5e",)

# XLA's CPU backend leaves products, convolutions and sums to YNNPACK, whose convolutions hardly use more than one core;
# its own take longer on one core, and all of them.
NOT_CONVOLUTIONS = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "INDIVIDUAL_DOT", "REDUCE"))

# YNNPACK takes no products of which a factor is stored the other way around, as those of all gradients of weights are.
# What XLA does itself then reaches in bfloat16 under half of the rate. oneDNN, which is told to take what YNNPACK does
# not, is in JAX 0.12; where it is not, nothing changes.
ONEDNN = "xla_cpu_experimental_onednn_custom_call"


def compiler_options(device_kind: str, cores: int = 1, slices: int = 1) -> dict[str, bool | str] | None:
    """XLA compiler options for a training step on such a device.

    Args:
        device_kind: JAX's name of the device.
        cores: for a CPU, the cores per device; 0 if devices share one.
        slices: for TPUs, the number of slices.
    """
    if device_kind == "cpu" and cores:
        return {ONEDNN: True} | ({"xla_cpu_experimental_ynn_fusion_type": NOT_CONVOLUTIONS} if cores > 1 else {})
    chip = find_chip(device_kind)
    if chip is not None and chip.name in APART:
        kinds = ("all_gather", "reduce_scatter", "all_reduce")
        return {f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True for kind in kinds}
    if chip is not None and chip.name in NARROW and slices > 1:
        return {"xla_tpu_enable_collective_pipeliner": False}
    return None
