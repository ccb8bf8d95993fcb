"""The table of accelerators."""

import jax
import jax.numpy as jnp

from mmjax.hardware.chips import CHIPS, compiler_options, find_chip


def flops(kind):
    chip = find_chip(kind)
    return None if chip is None else chip.flops


def test_published_peaks_by_device_kind():
    assert flops("TPU v5 lite") == 197e12
    assert flops("TPU v5") == flops("TPU v5p") == 459e12
    assert flops("TPU7x") == 1153.5e12
    assert flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops("NVIDIA H100 80GB HBM3") == flops("NVIDIA H200") == 989.5e12
    assert flops("NVIDIA H100 PCIe") == 756.5e12
    assert flops("NVIDIA B200") == 2250e12
    unknown = ("cpu", "TPU v4 lite", "NVIDIA H20", "NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    assert [flops(kind) for kind in unknown] == [None] * 4


def test_every_kind_is_of_one_chip():
    for chip in CHIPS.values():
        assert all(find_chip(kind) is chip for kind in chip.kinds)
        assert chip.dcn < chip.ici < chip.hbm < chip.flops


def test_what_the_compiler_is_told():
    assert (
        compiler_options("cpu", cores=0) is compiler_options("TPU v5 lite") is compiler_options("NVIDIA H200") is None
    )
    assert compiler_options("TPU v5 lite", cores=8) is None
    assert compiler_options("TPU v5 lite", slices=2) == {"xla_tpu_enable_collective_pipeliner": False}
    told = compiler_options("TPU v6 lite")
    assert told == compiler_options("TPU v5p")
    assert set(told.values()) == {True}
    assert all(name.startswith("xla_tpu_") for name in told)


def test_convolutions_use_all_cores_of_a_cpu():
    def convolve(x, kernel, a):
        convolved = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return convolved, a @ a

    x, kernel, a = jnp.ones((64, 32, 32, 64)), jnp.ones((3, 3, 64, 64)), jnp.ones((1024, 1024))
    texts = [
        jax.jit(convolve, compiler_options=compiler_options("cpu", cores)).lower(x, kernel, a).compile().as_text()
        for cores in (1, 2)
    ]
    # The product is YNNPACK's in both, the convolution, where there is no oneDNN, on one core.
    others = "__onednn$convolution" in texts[0]
    assert [text.count("kind=kCustom") for text in texts] == [1 if others else 2, 1]
