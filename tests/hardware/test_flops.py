"""Counted FLOPs against counts by hand and XLA's own; the peak of known and unknown devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mmjax.hardware.flops import count_flops, peak_flops, utilisation

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_a_product_with_batch_dimensions():
    x, w = jax.ShapeDtypeStruct((3, 5, 7, 4), jnp.bfloat16), jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)
    assert count_flops(lambda x, w: jnp.einsum("bnti,bio->bnto", x, w), x, w) == 2 * 3 * 5 * 7 * 4 * 6


@pytest.mark.parametrize(
    ("x", "kernel", "options", "flops"),
    [
        ((2, 10, 12, 3), (3, 3, 3, 16), {"padding": "VALID"}, 2 * 2 * 8 * 10 * 16 * 27),
        ((2, 8, 8, 6), (2, 2, 6, 5), {"padding": "VALID", "window_strides": (2, 2)}, 2 * 2 * 4 * 4 * 5 * 24),
        # Grouped: each output sees only the 8 / 4 inputs of its group; depthwise, one.
        ((1, 9, 9, 8), (3, 3, 2, 12), {"padding": "VALID", "feature_group_count": 4}, 2 * 7 * 7 * 12 * 9 * 2),
        ((1, 9, 9, 8), (3, 3, 1, 8), {"padding": "VALID", "feature_group_count": 8}, 2 * 7 * 7 * 8 * 9),
    ],
)
def test_convolutions_as_counted_by_hand_and_by_xla(x, kernel, options, flops):
    def convolve(x, kernel):
        options_and_strides = {"window_strides": (1, 1), **options}
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options_and_strides
        )

    arguments = jax.ShapeDtypeStruct(x, jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
    assert count_flops(convolve, *arguments) == flops
    assert xla_flops(convolve, *arguments) == pytest.approx(flops, rel=1e-3)


def test_a_transposed_convolution_is_as_much_work_as_the_one_it_transposes():
    def upsample(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)
    assert count_flops(upsample, x, kernel) == 2 * (4 * 4 * 3) * (2 * 2 * 5)


def test_a_ragged_product_meets_one_matrix_a_row():
    rows, experts = jax.ShapeDtypeStruct((6, 4), jnp.float32), jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)
    sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
    assert count_flops(jax.lax.ragged_dot, rows, experts, sizes) == 2 * 6 * 4 * 5

    def gradient(rows, experts, sizes):
        return jax.value_and_grad(lambda experts: jax.lax.ragged_dot(rows, experts, sizes).sum())(experts)

    assert count_flops(gradient, rows, experts, sizes) == 2 * (2 * 6 * 4 * 5)


def test_loops_count_their_turns():
    def nested(x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (x @ x, None), x @ x, None, length=5)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert count_flops(nested, MATRIX) == 3 * (1 + 5) * PRODUCT
    assert count_flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x @ x, x), MATRIX) == 7 * PRODUCT
    assert count_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), MATRIX) == PRODUCT


def test_of_branches_the_costliest_counts():
    def branch(x):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    assert count_flops(branch, MATRIX) == 2 * PRODUCT


def test_functions_inside_functions_count_once():
    @jax.custom_vjp
    def squared(x):
        return x @ x

    squared.defvjp(lambda x: (squared(x), x), lambda x, g: (g @ x.T + x.T @ g,))

    @jax.custom_jvp
    def cubed(x):
        return x @ x @ x

    cubed.defjvp(lambda primals, tangents: (cubed(*primals), tangents[0]))

    def function(x):
        x = squared(cubed(x))
        x = jax.jit(lambda x: jax.jit(lambda x: x @ x)(x))(x)
        return jax.checkpoint(lambda x: jax.nn.relu(x @ x), policy=jax.checkpoint_policies.dots_saveable)(x)

    assert count_flops(function, MATRIX) == 5 * PRODUCT
    assert count_flops(jax.vmap(function), jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)) == 4 * 5 * PRODUCT


def test_sharded_arrays_count_whole_and_a_shard_map_once_a_shard():
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("replica", "data", "tensor"))):
        mesh = jax.sharding.get_mesh()

        def abstract(spec):
            return jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=jax.NamedSharding(mesh, spec))

        rows, columns = abstract(PartitionSpec("data")), abstract(PartitionSpec(None, "tensor"))
        assert count_flops(jnp.matmul, rows, columns) == PRODUCT
        specs = (PartitionSpec("data"), PartitionSpec(None, "tensor"))
        by_hand = jax.shard_map(jnp.matmul, in_specs=specs, out_specs=PartitionSpec("data", "tensor"))
        # The replica axis splits nothing: its two halves do the same work, which is counted once.
        assert count_flops(by_hand, rows, columns) == PRODUCT


def test_a_transformer_block_as_xla_counts_it():
    def block(x, projections, up, down):
        q, k, v = jnp.einsum("bnd,dthk->tbnhk", x, projections)
        y = jax.nn.dot_product_attention(q, k, v)
        x = x + y.reshape(x.shape)
        return x + jax.nn.relu(x @ up) @ down

    shapes = [(2, 64, 128), (128, 3, 4, 32), (128, 512), (512, 128)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    tokens = 2 * 64
    by_hand = 2 * tokens * 128 * (3 * 128 + 2 * 512) + 2 * (2 * tokens * 64 * 128)
    assert count_flops(block, *arguments) == by_hand
    # XLA adds the element-wise work.
    assert by_hand < xla_flops(block, *arguments) < 1.05 * by_hand


def test_the_peak_of_this_machine_is_measured_once_under_any_mesh():
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tensor"))):
        peak, source = peak_flops()
    # A whole host does between a GFLOP/s and a PFLOP/s; 8 simulated devices share it.
    assert 1e9 / 8 < peak < 1e15 / 8
    assert source.startswith("measured")
    assert peak_flops() == (peak, source)
    assert utilisation(4 * peak, 2.0) == pytest.approx(2 / jax.device_count())
    assert utilisation(6e12, 0.5, 100e12) == pytest.approx(0.12)
