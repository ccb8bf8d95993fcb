"""Low-rank updates of linear layers: their definition, gradients, merging and sharding, and what is frozen."""

import functools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import TextTransformer
from mmjax.errors import UserError
from mmjax.fusion import Concat
from mmjax.heads import Classify
from mmjax.layers.linear import Linear
from mmjax.layers.lora import Lora, LoraLinear, add_lora, is_lora, lora_base_parameters, merge_lora
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw
from tests.small import FEATURES, make_batch, put

PLAIN = Model(
    width=16,
    dtype="float32",
    unroll=False,
    encoders={"text": TextTransformer(depth=2, heads=2)},
    fusion=Concat(hidden=8),
    outputs={"label": Classify(target="label")},
)
LORA = chz.replace(PLAIN, lora=(Lora(pattern="*/query", rank=3), Lora(pattern="*", rank=2, alpha=3.0)))
RULES = PRESETS["fsdp_tensor"]
ONE, EIGHT = MeshShape(data=1), MeshShape(data=2, fsdp=2, tensor=2)


def numbers(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def loss_of(model, batch):
    return model.loss(batch)[0]


@functools.cache
def trained(shape: MeshShape):
    """A model whose parameters are all random, on a mesh, with its loss and gradients."""
    with jax.set_mesh(shape.build()):
        model = draw(lambda rngs: LORA.build(FEATURES, rules=RULES, rngs=rngs), scale=0.2)
        loss, gradients = jax.jit(jax.value_and_grad(loss_of))(model, put(make_batch(presence=0.8), RULES))
    return model, float(loss), numbers(gradients)


def layer(shape, axes, inputs=1, rank=2):
    """A linear layer with a random low-rank update of factor 3 / 2, and its numbers."""
    linear = Linear(shape, axes, inputs=inputs, bias=True, rules=RULES, rngs=nnx.Rngs(0))
    linear = LoraLinear(linear, Lora(pattern="*", rank=rank, alpha=3.0), nnx.Rngs(1))
    linear.lora_b = nnx.Param(jax.random.normal(jax.random.key(2), linear.lora_b.shape))
    return linear, numbers(linear)


@pytest.mark.parametrize(
    ("shape", "axes", "inputs"),
    [((5, 3), ("embed", "mlp"), 1), ((6, 2, 3), ("embed", "heads", None), 1), ((2, 3, 6), ("heads", None, "embed"), 2)],
)
def test_by_hand(shape, axes, inputs):
    """y = x W + b + s x A B, whose gradient by A is s x' g B', and by B s (x A)' g."""
    linear, parts = layer(shape, axes, inputs)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 7, *shape[:inputs])), jnp.float32)
    g = rng.normal(size=(4, 7, *shape[inputs:])).astype(np.float32)

    def both(linear, x, g):
        y, pull = jax.vjp(lambda linear, x: linear(x), linear, x)
        return y, *pull(g)

    y, gradient, of_x = jax.jit(both)(linear, x, g)
    flat = np.asarray(x).reshape(28, -1)
    w, a, b = parts["kernel"].reshape(flat.shape[1], -1), parts["lora_a"].reshape(-1, 2), parts["lora_b"].reshape(2, -1)
    want = flat @ w + parts["bias"].ravel() + 1.5 * flat @ a @ b
    np.testing.assert_allclose(np.asarray(y).reshape(28, -1), want, rtol=1e-4, atol=1e-5)
    got, out = numbers(gradient), g.reshape(28, -1)
    np.testing.assert_allclose(got["lora_a"].reshape(a.shape), 1.5 * flat.T @ out @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["lora_b"].reshape(b.shape), 1.5 * (flat @ a).T @ out, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_x.reshape(flat.shape), out @ (w + 1.5 * a @ b).T, rtol=1e-4, atol=1e-4)
    merged = merge_lora(linear)
    np.testing.assert_allclose(merged(x), y, rtol=1e-5, atol=1e-5)
    assert {*numbers(merged)} == {"kernel", "bias"}
    assert {*numbers(linear)} == {"kernel", "bias", "lora_a", "lora_b"}, "the layer itself was changed"


def test_a_new_model_equals_the_one_without():
    """The same draws of what both have, and the same loss; in a stack every layer has its own A."""

    def both(key, batch):
        models = [build_model(key, model, FEATURES, RULES) for model in (PLAIN, LORA)]
        return models, [loss_of(model, batch) for model in models]

    with jax.set_mesh(EIGHT.build()):
        (plain, lora), losses = jax.jit(both)(jax.random.key(0), put(make_batch(), RULES))
    assert float(losses[0]) == float(losses[1])
    theirs, ours = numbers(plain), numbers(lora)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    added = ours.keys() - theirs.keys()
    assert all(map(is_lora, added))
    assert not any(map(is_lora, theirs))
    a = ours["encoders/text/stack/blocks/attention/query/lora_a"]
    assert a.shape == (2, 16, 3)
    assert not np.array_equal(a[0], a[1])
    assert ours["encoders/text/stack/blocks/attention/value/lora_b"].shape == (2, 2, 2, 8)
    assert all((ours[name] == 0).all() == name.endswith("lora_b") for name in added)
    large = ours["encoders/text/stack/blocks/mlp/down/lora_a"]
    assert large.std() == pytest.approx(64**-0.5, rel=0.2)
    layers = {name.rpartition("/")[0] for name in added}
    base = {name for name in theirs if name.rpartition("/")[0] in layers}
    assert "fusion/up/bias" in base
    assert sorted(lora_base_parameters(lora)) == sorted(base)


def test_on_eight_devices_as_on_one():
    _, one, reference = trained(ONE)
    _, loss, gradients = trained(EIGHT)
    assert loss == pytest.approx(one, rel=1e-5)
    for name, want in reference.items():
        np.testing.assert_allclose(gradients[name], want, rtol=1e-3, atol=1e-5, err_msg=name)
        assert not is_lora(name) or np.abs(want).max() > 0, name


def test_a_merged_model_has_the_same_loss_and_is_built_as_one_without():
    model, loss, _ = trained(EIGHT)
    merged = merge_lora(model)
    with jax.set_mesh(EIGHT.build()):
        same = jax.jit(loss_of)(merged, put(make_batch(presence=0.8), RULES))
        assert float(same) == pytest.approx(loss, rel=1e-5)
        plain = jax.eval_shape(
            functools.partial(build_model, model=PLAIN, features=FEATURES, rules=RULES), jax.random.key(0)
        )
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    for (name, got), (_, want) in zip(named_leaves(merged), named_leaves(plain), strict=True):
        assert got.sharding.spec == want.sharding.spec, name
    path = "encoders/text/stack/blocks/attention/out"
    before, after = numbers(model), numbers(merged)
    update = np.einsum("lhkr,lrd->lhkd", before[f"{path}/lora_a"], before[f"{path}/lora_b"])
    np.testing.assert_allclose(after[f"{path}/kernel"], before[f"{path}/kernel"] + 1.5 * update, rtol=1e-5, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"rank=0 must be at least 1"):
        Lora(pattern="*", rank=0)
    with pytest.raises(ValueError, match=r"alpha=0.0 must be above 0"):
        Lora(pattern="*", alpha=0.0)
    model = nnx.Dict(up=Linear((4, 2), ("embed", None), rules=RULES, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"^model.lora.1.pattern=down matches no linear layer; among them are up$"):
        add_lora(model, (Lora(pattern="*"), Lora(pattern="down")), nnx.Rngs(0))
