"""Products of rounded numbers: what they are, their slopes, on one device and on several."""

import collections
import sys

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.low_precision import QuantizedMatmul, quantize_matmuls
from mmjax.layers.mlp import MLP, Experts
from mmjax.profiling.hlo import HloModule
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS, Rules
from mmjax.sharding.topology import parse_topology
from tests.reference import draw
from tests.small import FEATURES
from tests.test_model import ATTENTIVE


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def rounded(array: np.ndarray, axis: int) -> np.ndarray:
    """To 255 equally spaced numbers that reach as far as the largest along the axis, by NumPy."""
    scale = np.abs(array).max(axis, keepdims=True) / 127.5
    return np.clip(np.rint(array / scale), -127, 127) * scale


def apart(one: jax.Array, other: jax.Array) -> float:
    """The root mean square of the difference, relative to the other."""
    return float(np.sqrt(np.square(one - other).mean() / np.square(other).mean()))


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear((96, 64), ("embed", "mlp"), rules=Rules(), rngs=nnx.Rngs(0))


def given(array: np.ndarray) -> jax.Array:
    """As a batch lies on the mesh."""
    return jax.sharding.reshard(jnp.asarray(array), Rules().spec("batch", None))


def numbers(*sizes: int) -> np.ndarray:
    return np.random.default_rng(sum(sizes)).normal(size=sizes).astype(np.float32)


def test_int8_products_and_their_slopes_as_numpy_rounds_them(linear):
    x, slope = numbers(32, 96), numbers(32, 64)
    linear.contract = QuantizedMatmul("int8")
    made, pull = jax.vjp(lambda linear, x: linear(x), linear, given(x))
    of_linear, of_x = pull(given(slope))
    kernel = np.asarray(linear.kernel[...])
    # The largest number lies between the last one and one beyond, and may be either by the last bit of the scale.
    assert apart(made, rounded(x, 1) @ rounded(kernel, 0)) < 0.002
    assert apart(of_x, rounded(slope, 1) @ rounded(kernel, 1).T) < 0.002
    np.testing.assert_allclose(of_linear.kernel[...], x.T @ slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("products", "error"), [("int8", 0.02), ("float8", 0.06)])
def test_rounding_costs_so_much(linear, products, error):
    """Root mean square errors, relative to the exact results."""
    x, slope = numbers(256, 96), numbers(256, 64)

    def both(contract):
        linear.contract = contract
        made, pull = jax.vjp(lambda x: linear(x), given(x))
        return made, pull(given(slope))[0]

    plain = Linear((96, 64), ("embed", "mlp"), rules=Rules(), rngs=nnx.Rngs(0)).contract
    for one, other in zip(both(QuantizedMatmul(products)), both(plain), strict=True):
        assert error / 4 < apart(one, other) < error


@pytest.mark.parametrize("products", ["int8", "float8"])
def test_several_devices_round_as_one_does(products):
    x, slope = numbers(32, 4, 96), numbers(32, 4, 96)

    def compute(shape: MeshShape) -> tuple[jax.Array, ...]:
        mesh = shape.build()
        rules = PRESETS["fsdp_tensor"]
        with jax.set_mesh(mesh):
            mlp = jax.jit(lambda key: MLP(96, 128, rules=rules, rngs=nnx.Rngs(key)))(jax.random.key(0))
            quantize_matmuls(mlp, products)
            split = jax.NamedSharding(mesh, rules.spec("batch", None, None))
            given, back = (jax.device_put(array, split) for array in (x, slope))

            def loss(mlp, x):
                return (mlp(x) * back).sum()

            slopes, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(mlp, given)
            return jax.tree.map(np.asarray, (slopes.up.kernel[...], slopes.down.kernel[...], of_x))

    one, several = compute(MeshShape(data=1)), compute(MeshShape(data=2, fsdp=2, tensor=2))
    # A number just between two may go the other way, where a scale differs in its last bit: far less than rounding.
    for here, there in zip(one, several, strict=True):
        assert apart(there, here) < 0.005


@pytest.mark.parametrize("products", ["int8", "float8"])
def test_experts_round_as_one_perceptron_each_does(products):
    """What an expert makes of its rows, and the gradients, are those of a `Linear` with the expert's matrix."""
    x, slope = numbers(3, 4, 5, 24), numbers(3, 4, 5, 40)
    layer = Experts(3, 24, 40, rules=Rules(), rngs=nnx.Rngs(0))
    quantize_matmuls(layer, products)
    assert layer.contract == QuantizedMatmul(products)
    spec = Rules().spec("expert", "group", None, None)
    sent, back = (jax.sharding.reshard(jnp.asarray(array), spec) for array in (x, slope))
    made, pull = jax.vjp(lambda up, x: layer._multiply(x, up, layer.axes[0], "mlp"), layer.up, sent)
    of_up, of_x = pull(back)
    one = Linear((24, 40), ("embed", "mlp"), rules=Rules(), rngs=nnx.Rngs(0))
    one.contract = QuantizedMatmul(products)
    for expert in range(3):
        one.kernel[...] = jnp.asarray(np.asarray(layer.up[...])[expert])
        rows, pull = jax.vjp(lambda linear, x: linear(x), one, given(x[expert].reshape(20, 24)))
        of_kernel, of_rows = pull(given(slope[expert].reshape(20, 40)))
        np.testing.assert_allclose(np.asarray(made)[expert].reshape(20, 40), rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(of_x)[expert].reshape(20, 24), of_rows, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(of_up[...])[expert], of_kernel.kernel[...], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("products", ["int8", "float8"])
def test_several_devices_round_experts_as_one_does(products):
    x, gates = numbers(8, 6, 24), np.abs(numbers(8, 6, 4))

    def compute(shape: MeshShape) -> tuple[jax.Array, ...]:
        rules = PRESETS["fsdp_tensor"]
        mesh = shape.build()
        with jax.set_mesh(mesh):
            make = jax.jit(lambda key: Experts(4, 24, 32, rules=rules, rngs=nnx.Rngs(key)))
            layer = make(jax.random.key(0))
            quantize_matmuls(layer, products)
            split = jax.NamedSharding(mesh, rules.spec("batch", None, None))
            given = [jax.device_put(array, split) for array in (x, gates)]
            loss = jax.jit(jax.grad(lambda layer, x, gates: jnp.square(layer(x, gates, 3)).sum(), argnums=(0, 1)))
            slopes, of_x = loss(layer, *given)
            return jax.tree.map(np.asarray, (slopes.up[...], slopes.down[...], of_x))

    for here, there in zip(compute(MeshShape(data=1)), compute(MeshShape(fsdp=2, expert=2, tensor=2)), strict=True):
        assert apart(there, here) < 0.005


def test_attention_and_perceptrons_are_rounded_and_nothing_else():
    config = chz.replace(ATTENTIVE, matmul_precision="int8")
    model = draw(lambda rngs: config.build(FEATURES, rules=PRESETS["data"], rngs=rngs))
    found = {}

    def look(module: nnx.Module, path: str) -> None:
        if isinstance(module, Linear):
            found[path] = module.contract
        for name, value in vars(module).items():
            if isinstance(value, nnx.Module):
                look(value, f"{path}/{name}")

    look(model, "")
    low = {path for path, contract in found.items() if contract == QuantizedMatmul("int8")}
    assert low == {path for path in found if path.split("/")[-2] in ("attention", "cross", "mlp")}
    assert {path.split("/")[1] for path in low} == {"encoders", "fusion", "outputs"}
    assert len(found) > len(low)


def test_without_qwix_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r'model.matmul_precision=int8 needs qwix: pip install "mmjax\[quantize\]"'):
        quantize_matmuls(MLP(8, 8, rules=Rules(), rngs=nnx.Rngs(0)), "int8")


def test_a_tpus_program_multiplies_8_bit_numbers_but_for_slopes_of_parameters():
    devices = parse_topology("v5e:2x2").devices()
    target, rules = MeshShape(data=4).build(devices), PRESETS["data"]
    with jax.set_mesh(target):
        mlp = jax.eval_shape(lambda: MLP(256, 512, rules=rules, rngs=nnx.Rngs(0)))
        quantize_matmuls(mlp, "int8")
        split = jax.NamedSharding(target, rules.spec("batch", None, None))
        x = jax.ShapeDtypeStruct((8, 128, 256), jnp.bfloat16, sharding=split)
        slopes = jax.jit(jax.grad(lambda mlp, x: jnp.square(mlp(x).astype(jnp.float32)).sum(), argnums=(0, 1)))
        module = HloModule(slopes.trace(mlp, x).lower(lowering_platforms=("tpu",)).compile().as_text())
    of = collections.Counter()
    for instruction in module.computations[module.entry].values():
        for product in module.products(module.entry, instruction):
            of["s8" if product.kind == "s8" else "wide"] += product.flops
    each = 2 * (8 * 128 // 4) * 256 * 512
    assert of == {"s8": 4 * each, "wide": 2 * each}
