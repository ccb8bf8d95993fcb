"""Attention's kernels: all of them are the same function, and each device gets its own."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mmjax.hardware.flops import count_flops
from mmjax.layers.attention_kernels import attend, choose_kernel, cudnn, shard_mapped, splash, xla_attention
from mmjax.profiling.hlo import HloModule
from mmjax.sharding.topology import parse_topology

MESH = ("data", "tensor")
TPU, GPU, CPU = ("TPU v5 lite", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu"), ("cpu", "cpu")


def drawn(rows: int, columns: int, head: int, heads: int = 2, examples: int = 2) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    sizes = [(examples, size, heads, head) for size in (rows, columns, columns)]
    mask = rng.random((examples, 1, 1, columns)) < 0.7
    mask[..., 0] = True
    return *(jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes), jnp.asarray(mask)


@pytest.mark.parametrize(("rows", "columns", "causal", "masked"), [(256, 512, False, True), (256, 256, True, False)])
def test_the_fused_kernel_of_tpus_is_the_same_function(rows, columns, causal, masked):
    query, key, value, mask = drawn(rows, columns, 128)
    seen = mask if masked else None

    def values(kernel):
        def loss(query, key, value):
            made = kernel(query, key, value, seen, causal)
            return jnp.square(made).sum(), made

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    with jax.default_matmul_precision("highest"):
        fused, plain = values(functools.partial(splash, interpret=True)), values(xla_attention)
    for one, other in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


def test_the_fused_kernel_of_tpus_keeps_to_segments():
    query, key, value, _ = drawn(256, 256, 128)
    ends = np.array([[60, 61, 200, 250], [128, 140, 150, 256]])
    places = np.arange(256)
    segments = sum((places >= row[:, None]).astype(np.int32) for row in ends.T) + 1
    segments = jnp.asarray(np.where(places < ends[:, 3:], segments, 0)[:, None, None])
    real = (segments > 0)[:, 0, 0, :, None, None]

    def values(kernel):
        def loss(query, key, value):
            found = jnp.where(real, kernel(query, key, value, segments, False), 0)
            return jnp.square(found).sum(), found

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    with jax.default_matmul_precision("highest"):
        fused, plain = values(functools.partial(splash, interpret=True)), values(xla_attention)
    for one, other in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("device", "rows", "head", "split", "chosen"),
    [
        (TPU, 256, 128, ("data", None, "tensor"), "splash"),
        (TPU, 1024, 128, ("data", None, "tensor"), "splash"),
        (TPU, 64, 128, ("data", None, "tensor"), "xla_attention"),
        (TPU, 256, 64, ("data", None, "tensor"), "xla_attention"),
        # Rows that lie on several devices are put together by XLA, as is what several devices have alike.
        (TPU, 256, 128, ("data", "tensor", None), "xla_attention"),
        (TPU, 256, 128, ("data", None, None), "xla_attention"),
        (GPU, 300, 64, ("data", None, "tensor"), "cudnn"),
        (GPU, 64, 64, ("data", None, "tensor"), "xla_attention"),
        (GPU, 301, 64, ("data", None, "tensor"), "xla_attention"),
        (GPU, 300, 256, ("data", None, "tensor"), "xla_attention"),
        (CPU, 256, 128, ("data", None, "tensor"), "xla_attention"),
    ],
)
def test_each_device_gets_the_kernel_that_suits_it(device, rows, head, split, chosen):
    kind, platform = device
    mesh = AbstractMesh((4, 2), MESH, (AxisType.Explicit,) * 2, abstract_device=AbstractDevice(kind, None, platform))
    found = []

    def look(array: jax.Array) -> jax.Array:
        kernel = choose_kernel(array, array)
        found.append(kernel.args[0] if isinstance(kernel, functools.partial) else kernel)
        return array

    with jax.sharding.use_abstract_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P(*split))
        jax.eval_shape(look, jax.ShapeDtypeStruct((8, rows, 4, head), jnp.bfloat16, sharding=sharding))
    assert [kernel.__name__ for kernel in found] == [chosen]


@pytest.mark.parametrize("causal", [False, True])
def test_a_gpus_program_asks_for_the_fused_kernel_on_each_devices_part(monkeypatch, causal):
    """As far as it goes without a GPU: what is handed to XLA's compiler for one."""
    # There is no cuDNN here to ask for its version.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    mesh = jax.make_mesh((2, 2), MESH, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        array = jax.ShapeDtypeStruct(
            (8, 256, 4, 64), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
        )
        mask = jax.ShapeDtypeStruct((8, 1, 1, 256), jnp.bool_, sharding=jax.NamedSharding(mesh, jax.P("data")))

        def loss(query, key, value, mask):
            return shard_mapped(cudnn, query, key, value, mask, causal).astype(jnp.float32).sum()

        assert count_flops(loss, array, array, array, mask) == 2 * 2 * 8 * 4 * 256 * 256 * 64
        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(array, array, array, mask)
        text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert set(re.findall(r"__cudnn\$\w+", text)) == {
        "__cudnn$fmhaScaleBiasSoftmax",
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
    }
    assert "tensor<4x256x2x64xbf16>" in text


def test_a_tpus_program_never_holds_the_scores_and_its_flops_are_known():
    """Two products forward, and five backward, in which the scores are made again."""
    devices = parse_topology("v5e:2x2").devices()
    mesh = jax.sharding.Mesh(np.array(devices).reshape(2, 2), MESH, axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        split = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
        array = jax.ShapeDtypeStruct((8, 512, 4, 128), jnp.bfloat16, sharding=split)
        mask = jax.ShapeDtypeStruct((8, 1, 1, 512), jnp.bool_, sharding=jax.NamedSharding(mesh, jax.P("data")))

        def loss(query, key, value, mask):
            return attend(query, key, value, mask, False).astype(jnp.float32).sum()

        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(array, array, array, mask)
        compiled = program.lower(lowering_platforms=("tpu",)).compile()
        product = 2 * 8 * 4 * 512 * 512 * 128
        assert count_flops(loss, array, array, array, mask) == 2 * product
    assert HloModule(compiled.as_text()).flops * mesh.size == 7 * product
    scores = 8 * 4 * 512 * 512 * 4 // mesh.size
    assert compiled.memory_analysis().temp_size_in_bytes < scores
