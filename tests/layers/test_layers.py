"""Layers against plain NumPy in float64, SciPy and XLA's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx
from jax.sharding import PartitionSpec

from mmjax.errors import UserError
from mmjax.layers.attention import Attention, AttentionPool, Block, masked_mean
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.conv import Conv, DepthwiseConv
from mmjax.layers.linear import Embedding, Linear, make_parameter
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.patches import group_sequence, patchify, sliding_windows
from mmjax.layers.position import time_embedding
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests import reference
from tests.reference import draw, wide

WIDTH, HEADS = 16, 4
RULES = PRESETS["fsdp_tensor"]


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x(rng):
    return rng.normal(size=(3, 5, WIDTH)).astype(np.float32)


@pytest.fixture
def mask(rng):
    mask = rng.uniform(size=(3, 5)) < 0.6
    mask[1] = False
    return mask


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "axes", "inputs", "bias"),
    [
        ((WIDTH, 4, 6), ("embed", "heads", None), 1, False),
        ((4, 6, WIDTH), ("heads", None, "embed"), 2, True),
        ((WIDTH, 12), ("embed", "mlp"), 1, True),
    ],
)
def test_linear(rng, shape, axes, inputs, bias):
    layer = draw(lambda rngs: Linear(shape, axes, inputs=inputs, bias=bias, rules=RULES, rngs=rngs))
    x = rng.normal(size=(3, 5, *shape[:inputs])).astype(np.float32)
    close(layer(jnp.asarray(x)), reference.linear(layer, x))
    assert (layer.bias is not None) == bias


def test_linear_starts_with_the_variance_of_its_inputs():
    layer = Linear((8, 32, 64), (None, None, None), inputs=2, scale=0.5, bias=True, rules=RULES, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    assert kernel.std() == pytest.approx((0.5 / (8 * 32)) ** 0.5, rel=0.03)
    assert abs(kernel.mean()) < 0.001
    assert not np.asarray(layer.bias[...]).any()
    table = Embedding(500, 16, rules=RULES, rngs=nnx.Rngs(0)).table[...]
    assert np.asarray(table).std() == pytest.approx(1 / 4, rel=0.03)


def test_norm(x):
    layer = draw(lambda rngs: RMSNorm(WIDTH, rules=RULES, rngs=rngs))
    close(layer(jnp.asarray(x)), reference.norm(layer, x.astype(np.float64)))
    assert np.asarray(RMSNorm(4, rules=RULES, rngs=nnx.Rngs(0)).gain[...]).tolist() == [1, 1, 1, 1]


def test_attention(x, mask, rng):
    layer = draw(lambda rngs: Attention(WIDTH, HEADS, rules=RULES, rngs=rngs))
    context = rng.normal(size=(3, 7, WIDTH)).astype(np.float32)
    context_mask = rng.uniform(size=(3, 7)) < 0.5
    close(layer(jnp.asarray(x)), reference.attention(layer, x))
    close(layer(jnp.asarray(x), mask=jnp.asarray(mask)), reference.attention(layer, x, mask=mask))
    seen = layer(jnp.asarray(x), jnp.asarray(context), jnp.asarray(context_mask))
    close(seen, reference.attention(layer, x, context, context_mask))


def test_attention_to_a_context_of_another_width(x, rng):
    options = BlockOptions(qkv_bias=True)
    layer = draw(lambda rngs: Attention(WIDTH, HEADS, options, context_width=6, rules=RULES, rngs=rngs))
    assert layer.key.kernel.shape == (6, HEADS, WIDTH // HEADS)
    assert layer.out.bias is None
    context, mask = rng.normal(size=(3, 7, 6)).astype(np.float32), rng.uniform(size=(3, 7)) < 0.5
    seen = layer(jnp.asarray(x), jnp.asarray(context), jnp.asarray(mask))
    close(seen, reference.attention(layer, x, context, mask))


def test_grouped_queries_with_rotary_positions(x):
    """Every query head with the keys of its group, turned as complex numbers by their places."""
    layer = draw(lambda rngs: Attention(WIDTH, HEADS, BlockOptions(kv_heads=2, rope=10.0), rules=RULES, rngs=rngs))
    angles = np.arange(5)[:, None] * 10.0 ** (-np.arange(2) / 2)

    def turn(rows):
        turned = (rows[..., :2] + 1j * rows[..., 2:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], -1)

    query, key, value = (reference.linear(part, x.astype(np.float64)) for part in (layer.query, layer.key, layer.value))
    query, key, value = turn(query), np.repeat(turn(key), 2, 2), np.repeat(value, 2, 2)
    scores = np.einsum("bnhk,bmhk->bhnm", query, key) / 2
    weights = reference.softmax(np.where(np.tri(5, dtype=bool), scores, -np.inf))
    mixed = np.einsum("bhnm,bmhk->bnhk", weights, value)
    close(layer(jnp.asarray(x), causal=True), reference.linear(layer.out, mixed))


def test_attention_of_a_single_example(x, mask, rng):
    """Which no mesh can split, and JAX 0.12 would not reshape."""
    layer = draw(lambda rngs: Attention(WIDTH, HEADS, rules=RULES, rngs=rngs))
    one, there = jax.device_put((x[:1], mask[:1]), RULES.spec("batch"))
    mixed = jax.jit(lambda layer, x, mask: layer(x, mask=mask))(layer, one, there)
    close(mixed, reference.attention(layer, x[:1], mask=mask[:1]))
    assert jax.typeof(mixed).sharding.spec[0] == jax.typeof(one).sharding.spec[0]


def test_attention_to_nothing_is_zero_and_has_finite_gradients(x, mask):
    layer = draw(lambda rngs: Attention(WIDTH, HEADS, rules=RULES, rngs=rngs))

    @jax.jit
    def result_and_gradients(layer, x):
        result, pull = jax.vjp(lambda layer, x: layer(x, mask=jnp.asarray(mask)), layer, x)
        return result, pull(jnp.ones_like(result))

    result, gradients = result_and_gradients(layer, jnp.asarray(x))
    assert not np.asarray(result)[1].any()
    assert not np.asarray(gradients[1])[1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_block(x, mask):
    layer = draw(lambda rngs: Block(WIDTH, HEADS, rules=RULES, rngs=rngs), scale=0.2)
    assert layer.mlp.up.kernel.shape == (WIDTH, 4 * WIDTH)
    close(layer(jnp.asarray(x), jnp.asarray(mask), None), reference.block(layer, x.astype(np.float64), mask), 1e-4)


def test_attention_pool(x, mask):
    layer = draw(lambda rngs: AttentionPool(WIDTH, HEADS, rules=RULES, rngs=rngs))
    close(layer(jnp.asarray(x), jnp.asarray(mask)), reference.pool(layer, x.astype(np.float64), mask))


def test_masked_mean_sees_only_real_tokens(x, mask):
    close(masked_mean(jnp.asarray(x), jnp.asarray(mask)), reference.masked_mean(x, mask))
    spoiled = np.where(mask[..., None], x, np.nan)
    np.testing.assert_array_equal(
        masked_mean(jnp.asarray(spoiled), jnp.asarray(mask)), masked_mean(jnp.asarray(x), jnp.asarray(mask))
    )


def test_embedding(rng):
    layer = draw(lambda rngs: Embedding(12, WIDTH, rules=RULES, rngs=rngs))
    ids = rng.integers(0, 12, (3, 5)).astype(np.int32)
    np.testing.assert_array_equal(layer(jnp.asarray(ids), jnp.dtype("float32")), np.asarray(layer.table[...])[ids])
    x = rng.normal(size=(3, 5, WIDTH)).astype(np.float32)
    close(layer.logits(jnp.asarray(x)), x @ wide(layer.table).T)
    assert layer(jnp.asarray(ids), jnp.dtype("bfloat16")).dtype == jnp.bfloat16


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_depthwise_convolution(rng, kernel):
    layer = draw(lambda rngs: DepthwiseConv(WIDTH, kernel, rules=RULES, rngs=rngs))
    x = rng.normal(size=(2, 6, 7, WIDTH)).astype(np.float32)
    weights = np.asarray(layer.kernel[...])
    ours = jax.jit(layer)(jnp.asarray(x)) - np.asarray(layer.bias[...])
    xla = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(weights[:, :, None]),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=WIDTH,
    )
    close(ours, xla)
    if kernel % 2:  # SciPy centres even kernels on the other side.
        planes = [
            [scipy.signal.correlate(x[b, :, :, c], weights[:, :, c], "same") for c in range(WIDTH)] for b in range(2)
        ]
        close(ours, np.moveaxis(np.asarray(planes), 1, -1))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (4, 4), (3, 2)])
def test_convolution(rng, kernel, stride):
    layer = draw(lambda rngs: Conv(3, 8, kernel, stride=stride, rules=RULES, rngs=rngs))
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    expected = reference.convolve(x, reference.wide(layer.kernel), stride) + reference.wide(layer.bias)
    close(layer(jnp.asarray(x)), expected)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(5, 1, 1), (3, 2, 1), (3, 1, 3), (4, 1, 2)])
def test_convolution_over_time(rng, kernel, stride, dilation):
    """Against NumPy's correlation with a kernel that has zeros between its entries."""
    layer = draw(lambda rngs: Conv(3, 8, (kernel,), stride=stride, dilation=dilation, rules=RULES, rngs=rngs))
    x = rng.normal(size=(2, 11, 3)).astype(np.float32)
    spread = np.zeros((dilation * (kernel - 1) + 1, 3, 8))
    spread[::dilation] = reference.wide(layer.kernel)
    missing = max((-(-11 // stride) - 1) * stride + len(spread) - 11, 0)
    padded = np.pad(x, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    expected = np.zeros((2, -(-11 // stride), 8))
    for b, c, d in np.ndindex(2, 3, 8):
        expected[b, :, d] += np.correlate(padded[b, :, c], spread[:, c, d], "valid")[::stride]
    close(layer(jnp.asarray(x)), expected + reference.wide(layer.bias))


def test_convolution_along_the_rows_alone(rng):
    layer = draw(lambda rngs: Conv(3, 8, (5, 1), stride=(3, 1), rules=RULES, rngs=rngs))
    x = rng.normal(size=(2, 11, 4, 3)).astype(np.float32)
    over_time = draw(lambda rngs: Conv(3, 8, (5,), stride=3, rules=RULES, rngs=rngs))
    over_time.kernel[...] = layer.kernel[...][:, 0]
    over_time.bias[...] = layer.bias[...]
    for column in range(4):
        close(layer(jnp.asarray(x))[:, :, column], over_time(jnp.asarray(x[:, :, column])))


@pytest.mark.parametrize("kernel", [3, 4])
def test_depthwise_convolution_over_time(rng, kernel):
    layer = draw(lambda rngs: DepthwiseConv(WIDTH, (kernel,), rules=RULES, rngs=rngs))
    x = rng.normal(size=(2, 9, WIDTH)).astype(np.float32)
    padded = np.pad(x, ((0, 0), ((kernel - 1) // 2, kernel // 2), (0, 0)))
    weights, expected = reference.wide(layer.kernel), np.zeros(x.shape)
    for b, c in np.ndindex(2, WIDTH):
        expected[b, :, c] = np.correlate(padded[b, :, c], weights[:, c], "valid")
    close(layer(jnp.asarray(x)), expected + reference.wide(layer.bias))


def test_pictures_are_cut_row_by_row(rng):
    x = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    patches = np.asarray(patchify(jnp.asarray(x), 2, rules=RULES))
    assert patches.shape == (2, 12, 12)
    for row in range(3):
        for column in range(4):
            window = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, 4 * row + column], window.reshape(2, -1))


def test_sequences_are_cut_in_order(rng):
    x = rng.normal(size=(2, 6, 4)).astype(np.float32)
    np.testing.assert_array_equal(group_sequence(jnp.asarray(x), 3, rules=RULES)[1, 1, 2], x[1, 5])


@pytest.mark.parametrize(("entries", "stride"), [(6, 1), (6, 2), (7, 2), (7, 3)])
def test_windows_are_what_a_convolution_sees(rng, entries, stride):
    x = rng.normal(size=(2, entries, 4)).astype(np.float32)
    kernel = rng.normal(size=(5, 4)).astype(np.float32)
    seen = sliding_windows(jnp.asarray(x), 5, stride)
    whole = [sum(np.correlate(row[:, c], kernel[:, c], "same") for c in range(4)) for row in x]
    close(np.tensordot(seen, kernel, 2), np.stack(whole)[:, ::stride])


@pytest.mark.parametrize("width", [16, 15])
def test_time_embedding(rng, width):
    time = rng.uniform(0, 3, size=(2, 5)).astype(np.float32)
    waves = np.asarray(time_embedding(jnp.asarray(time), width))
    assert waves.shape == (2, 5, width)
    even = width // 2 * 2
    close(waves[..., :even], reference.time_embedding(time.astype(np.float64), even), 1e-3)
    assert not waves[..., even:].any()


def test_dropout_keeps_the_mean():
    rate, shape = 0.3, (200, 100)
    dropped = np.asarray(dropout(jnp.full(shape, 2.0), rate, jax.random.key(0)))
    kept = dropped != 0
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / kept.size) ** 0.5
    np.testing.assert_allclose(dropped[kept], 2 / (1 - rate), rtol=1e-6)
    assert (np.asarray(dropout(jnp.ones(shape), rate, jax.random.key(1))) != 0).tolist() != kept.tolist()


def test_dropout_is_off_without_a_key_or_a_rate():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_bfloat16_keeps_parameters_and_statistics_in_float32(x, mask):
    layer = draw(lambda rngs: Block(WIDTH, HEADS, rules=RULES, rngs=rngs), scale=0.2)
    low = layer(jnp.asarray(x, jnp.bfloat16), jnp.asarray(mask), None)
    assert low.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(layer)} == {jnp.dtype("float32")}
    expected = reference.block(layer, x.astype(np.float64), mask)
    assert np.abs(np.asarray(low, np.float64) - expected).max() < 0.02 * np.abs(expected).max()

    jaxpr = str(jax.make_jaxpr(lambda x: layer(x, jnp.asarray(mask), None))(jnp.asarray(x, jnp.bfloat16)))
    for statistic in ("rsqrt", "exp", "reduce_max"):
        lines = [line for line in jaxpr.splitlines() if f"= {statistic}" in line]
        assert lines, statistic
        assert all(":f32[" in line.split("=")[0] for line in lines), lines


def test_norm_of_large_bfloat16_numbers():
    layer = RMSNorm(4, rules=RULES, rngs=nnx.Rngs(0))
    numbers = jnp.asarray([[3e19, -3e19, 3e19, 3e19]], jnp.bfloat16) / 100
    np.testing.assert_array_equal(np.asarray(layer(numbers), np.float32), [[1, -1, 1, 1]])


def test_a_small_parameter_that_the_mesh_does_not_divide_is_stored_whole():
    with jax.set_mesh(MeshShape(data=1, fsdp=2, tensor=4).build()):
        layer = Linear((7, 8), ("embed", "mlp"), rules=RULES, rngs=nnx.Rngs(0))
        assert layer.kernel[...].sharding.spec == PartitionSpec(None, "tensor")
        gradient = jax.jit(jax.grad(lambda layer: layer(jnp.ones((2, 7))).sum()))(layer)
        np.testing.assert_allclose(jax.device_get(gradient.kernel[...]), np.full((7, 8), 2.0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda rngs: Attention(WIDTH, 2, rules=RULES, rngs=rngs), "mesh.tensor=4 does not divide dimension heads=2"),
        (
            lambda rngs: Linear((1025, 1024), ("embed", None), rules=RULES, rngs=rngs),
            "mesh.fsdp=2 does not divide dimension embed=1025",
        ),
        (lambda rngs: Embedding(6, 8, rules=RULES, rngs=rngs), "mesh.tensor=4 does not divide dimension vocab=6"),
    ],
)
def test_a_dimension_that_the_mesh_does_not_divide(make, says):
    with jax.set_mesh(MeshShape(data=1, fsdp=2, tensor=4).build()), pytest.raises(UserError) as error:
        jax.eval_shape(lambda key: make(nnx.Rngs(key)), jax.random.key(0))
    assert says in str(error.value)
    assert "shape (" in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_are_born_in_their_sharding():
    with jax.set_mesh(MeshShape(data=1, fsdp=2, tensor=4).build()):
        init = jax.nn.initializers.normal(1.0)
        make = jax.jit(lambda key: make_parameter(init, (4, 8), ("embed", "heads"), rules=RULES, rngs=nnx.Rngs(key)))
        parameter = make(jax.random.key(0))
        assert {shard.data.shape for shard in parameter[...].addressable_shards} == {(2, 2)}
        assert jax.typeof(parameter[...]).sharding.spec == RULES.spec("embed", "heads")
