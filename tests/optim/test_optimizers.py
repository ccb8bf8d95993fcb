"""Optimizers against Optax used directly and NumPy; rules, freezing and shardings."""

import functools
import time

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from launch.command_line import load_experiment, resolve
from mmjax import fusion
from mmjax.errors import UserError
from mmjax.layers.attention import Block
from mmjax.layers.conv import Conv, DepthwiseConv
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.mlp import Experts
from mmjax.layers.stack import Stack
from mmjax.layers.tree import named_leaves
from mmjax.optim.optimizers import Adafactor, AdamW, Lion, Muon, Rule, matrix_dimensions, treat
from mmjax.optim.schedules import Constant
from mmjax.optim.schedules import Linear as Line
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.small import FEATURES
from tests.test_model import ATTENTIVE

STEPS, RATE, DECAY = 4, 0.01, 0.1
CONSTANT = Constant(warmup=0, cooldown=0.0)
SETTINGS = {"learning_rate": RATE, "schedule": CONSTANT, "weight_decay": DECAY, "clip": None}


class Net(nnx.Module):
    """One of every kind of parameter the layers make; `value` and `out` are the awkward ones."""

    def __init__(self, rngs: nnx.Rngs):
        make = {"rules": PRESETS["fsdp_tensor"], "rngs": rngs}
        self.embed = Embedding(16, 8, **make)
        self.conv = Conv(2, 8, 3, **make)
        self.depthwise = DepthwiseConv(8, 3, **make)
        stack = Stack(lambda rngs: Block(8, 2, rules=make["rules"], rngs=rngs), 3, rngs=rngs)
        self.parts = nnx.Dict({"image": stack})
        self.experts = Experts(2, 8, 12, **make)
        self.head = Linear((8, 6), ("embed", None), bias=True, **make)


MATRICES = {
    "conv/kernel",
    "head/kernel",
    "experts/up",
    "experts/down",
    "parts/image/blocks/mlp/up/kernel",
    "parts/image/blocks/mlp/down/kernel",
    *(f"parts/image/blocks/attention/{part}/kernel" for part in ("query", "key", "value", "out")),
}


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def net():
    return jax.jit(lambda key: Net(nnx.Rngs(key)))(jax.random.key(0))


@pytest.fixture(scope="module")
def gradients(net):
    """The gradients of `STEPS` steps."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jax.device_put(rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding)

    return [jax.tree.map(draw, net) for _ in range(STEPS)]


def run(transformation, params, gradients):
    """The parameters after the steps, by name."""
    state = jax.jit(transformation.init)(params)

    @jax.jit
    def step(params, state, grads, number):
        updates, state = optax.with_extra_args_support(transformation).update(grads, state, params, step=number)
        return optax.apply_updates(params, updates), state

    for number, grads in enumerate(gradients):
        params, state = step(params, state, grads, number)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params)}


def plain(tree):
    """The same numbers as a flat dict of arrays on one device."""
    return {name: jnp.asarray(np.asarray(leaf)) for name, leaf in named_leaves(tree)}


def kernels(params):
    """What is decayed."""
    return {name: name in MATRICES | {"depthwise/kernel"} for name in params}


def assert_same(got, want, rtol=2e-5):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=1e-6, err_msg=name)


DIRECT = {
    "adamw": (
        AdamW(b2=0.99, **SETTINGS | {"schedule": Line(warmup=2), "clip": 0.5}),
        optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.adamw(
                optax.join_schedules(
                    [optax.linear_schedule(0, RATE, 2), optax.linear_schedule(RATE, 0, STEPS - 2)], [2]
                ),
                b2=0.99,
                weight_decay=DECAY,
                mask=kernels,
            ),
        ),
    ),
    "lion": (Lion(**SETTINGS), optax.lion(RATE, weight_decay=DECAY, mask=kernels)),
    "adafactor": (
        Adafactor(min_dim_size_to_factor=4, **SETTINGS),
        optax.adafactor(
            RATE,
            min_dim_size_to_factor=4,
            multiply_by_parameter_scale=False,
            momentum=0.9,
            # Optax subtracts this decay without the learning rate.
            weight_decay_rate=DECAY * RATE,
            weight_decay_mask=kernels,
        ),
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_several_steps_equal_optax_on_one_device(name, net, gradients):
    optimizer, direct = DIRECT[name]
    got = run(optimizer.build(STEPS, net), net, gradients)
    with jax.set_mesh(jax.make_mesh((1,), ("one",))):
        assert_same(got, run(direct, plain(net), [plain(grads) for grads in gradients]))


def orthogonalise(matrix):
    """Newton-Schulz in NumPy: an orthogonal matrix close to the polar factor of the momentum."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_muon_equals_numpy_on_the_right_matrices(net, gradients):
    got = run(Muon(**SETTINGS).build(STEPS, net), net, gradients)
    start = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(net)}
    grads = [{name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(tree)} for tree in gradients]
    block = "parts/image/blocks"
    # Number of stacked layers, then inputs x outputs of the map each of them is.
    matrices = {
        "conv/kernel": (1, 18, 8),
        "head/kernel": (1, 8, 6),
        "experts/up": (2, 8, 12),
        "experts/down": (2, 12, 8),
        f"{block}/mlp/up/kernel": (3, 8, 32),
        f"{block}/mlp/down/kernel": (3, 32, 8),
        **{f"{block}/attention/{part}/kernel": (3, 8, 8) for part in ("query", "key", "value", "out")},
    }
    assert matrices.keys() == MATRICES
    for name, (layers, inputs, outputs) in matrices.items():
        x, momentum = start[name].reshape(layers, inputs, outputs), np.zeros((layers, inputs, outputs))
        for t, tree in enumerate(grads, 1):
            gradient = tree[name].reshape(momentum.shape)
            momentum = 0.95 * momentum + 0.05 * gradient
            nesterov = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * gradient / (1 - 0.95**t)
            direction = 0.2 * max(inputs, outputs) ** 0.5 * np.stack([orthogonalise(layer) for layer in nesterov])
            x = x - RATE * (direction + DECAY * x)
        np.testing.assert_allclose(got[name], x.reshape(start[name].shape), rtol=1e-4, atol=1e-5, err_msg=name)
    with jax.set_mesh(jax.make_mesh((1,), ("one",))):
        adam = run(optax.adamw(RATE, weight_decay=DECAY, mask=kernels), plain(net), [plain(g) for g in gradients])
    others = adam.keys() - matrices.keys()
    assert {"embed/table", "depthwise/kernel", "head/bias", f"{block}/mlp_norm/gain"} <= others
    assert_same({name: got[name] for name in others}, {name: adam[name] for name in others})


def test_newton_schulz_comes_near_the_polar_factor():
    """The reference above is itself right: singular values near 1, singular vectors kept."""
    matrix = np.random.default_rng(1).normal(size=(6, 20))
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix) @ vt.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-9)
    assert np.diag(inner).min() > 0.6
    assert np.diag(inner).max() < 1.3


def test_matrices_are_said_where_they_are_made():
    """Those of a whole model with experts: its routers and experts, and no embedding, gain or latent."""
    config = chz.replace(ATTENTIVE, fusion=fusion.Experts(depth=2, heads=2))
    model = jax.eval_shape(lambda: config.build(FEATURES, rules=PRESETS["data"], rngs=nnx.Rngs(0)))
    found = matrix_dimensions(model)
    shapes = {name: leaf.shape for name, leaf in named_leaves(model)}
    blocks = "fusion/stack/blocks"
    experts = {f"{blocks}/experts/up", f"{blocks}/experts/down", f"{blocks}/routers"}
    assert experts <= found.keys()
    assert found.keys() - experts == {name for name in shapes if name.endswith("/kernel")}
    for name in experts:  # [layers, experts or modalities, inputs, outputs]
        assert (found[name].reduction_axis, found[name].output_axis) == ((2,), (3,))
    decayed = {name for name, treatment in treat((), model).items() if treatment.weight_decay}
    assert decayed == found.keys()


@pytest.mark.parametrize("kind", [AdamW, Lion, functools.partial(Adafactor, min_dim_size_to_factor=4), Muon])
def test_state_is_sharded_like_its_parameters_and_stays_so(kind, net):
    optimizer = kind(learning_rate=RATE).build(STEPS, net)
    state = jax.jit(optimizer.init)(net)
    shardings = {name: leaf.sharding.spec for name, leaf in named_leaves(net)}
    moments = 0
    for name, leaf in named_leaves(state):
        owner = next((owner for owner in shardings if name.endswith(f"/{owner}")), None)
        if owner is not None and leaf.shape == dict(named_leaves(net))[owner].shape:
            assert leaf.sharding.spec == shardings[owner], name
            moments += 1
    assert moments >= len(shardings)

    abstract = jax.eval_shape(optimizer.init, jax.eval_shape(lambda key: Net(nnx.Rngs(key)), jax.random.key(0)))
    assert [(name, leaf.shape, leaf.dtype) for name, leaf in named_leaves(abstract)] == [
        (name, leaf.shape, leaf.dtype) for name, leaf in named_leaves(state)
    ]
    updates, after = jax.jit(optimizer.update)(net, state, net, step=0)
    for new, old in ((after, state), (updates, net)):
        assert {name: leaf.sharding for name, leaf in named_leaves(new)} == {
            name: leaf.sharding for name, leaf in named_leaves(old)
        }


def test_factored_moments_keep_the_sharding_of_what_is_left(net):
    optimizer = Adafactor(min_dim_size_to_factor=4).build(STEPS, net)
    state = dict(named_leaves(jax.jit(optimizer.init)(net)))
    up = "parts/image/blocks/mlp/up/kernel"  # [3, 8, 32] over (None, fsdp, tensor)
    found = {name: (leaf.shape, tuple(leaf.sharding.spec)) for name, leaf in state.items() if name.endswith(up)}
    assert sorted(found.values()) == sorted(
        [((3, 8), (None, "fsdp")), ((3, 32), (None, "tensor")), ((1,), (None,)), ((3, 8, 32), (None, "fsdp", "tensor"))]
    )


def test_frozen_parameters_do_not_move_and_keep_no_moments(net, gradients):
    rules = (Rule(pattern="embed/*", freeze=True), Rule(pattern="parts/image/*", freeze=True))
    for kind in (AdamW, Muon):
        optimizer = kind(**SETTINGS | {"rules": rules, "clip": 0.5}).build(STEPS, net)
        names = [name for name, _ in named_leaves(jax.eval_shape(optimizer.init, net))]
        assert not [name for name in names if "embed" in name or "image" in name]
        got = run(optimizer, net, gradients)
        for name, leaf in named_leaves(net):
            moved = not np.array_equal(got[name], leaf)
            assert moved != name.startswith(("embed/", "parts/image/")), name


def test_clipping_ignores_frozen_gradients(net, gradients):
    """A frozen part's large gradients must not shorten the steps of the rest."""
    # An eps this large makes AdamW linear in the gradient, so that its length shows.
    rules = (Rule(pattern="embed/*", freeze=True),)
    optimizer = AdamW(learning_rate=1e3, eps=1e3, clip=1.0, schedule=CONSTANT, rules=rules).build(STEPS, net)
    loud = jax.tree_util.tree_map_with_path(lambda path, g: g * (1e6 if "embed" in str(path) else 1), gradients[0])
    one, other = (run(optimizer, net, [grads]) for grads in (gradients[0], loud))
    assert_same(one, other, rtol=0)
    moved = [np.square(one[name] - np.asarray(leaf)).sum() for name, leaf in named_leaves(net)]
    assert np.sqrt(sum(moved)) == pytest.approx(1.0, rel=0.05)


def test_rules_scale_learning_rate_and_decay_and_the_first_match_counts(net, gradients):
    zero = [jax.tree.map(jnp.zeros_like, gradients[0])]
    start = {name: np.asarray(leaf) for name, leaf in named_leaves(net)}
    rules = (
        Rule(pattern="head/kernel", learning_rate=0.5),
        Rule(pattern="head/*", weight_decay=3.0),
        Rule(pattern="*attention/*kernel", weight_decay=0.0),
        Rule(pattern="*gain", weight_decay=2.0, learning_rate=0.1),
    )
    got = run(AdamW(**SETTINGS | {"rules": rules}).build(STEPS, net), net, zero)
    factors = {"head/kernel": 0.5, "head/bias": 3.0, "conv/kernel": 1.0, "conv/bias": 0.0, "embed/table": 0.0}
    block = "parts/image/blocks"
    factors |= {f"{block}/attention/out/kernel": 0.0, f"{block}/mlp_norm/gain": 0.2, f"{block}/mlp/up/kernel": 1.0}
    for name, factor in factors.items():
        np.testing.assert_allclose(got[name], start[name] * (1 - RATE * DECAY * factor), rtol=1e-6, err_msg=name)

    # Without decay the very first Lion step is the sign of the gradient times the learning rate.
    got = run(Lion(**SETTINGS | {"rules": rules, "weight_decay": 0.0}).build(STEPS, net), net, gradients[:1])
    moved = {name: np.abs(got[name] - start[name]).max() for name in start}
    assert moved["head/kernel"] == pytest.approx(0.5 * RATE, rel=1e-3)
    assert moved["head/bias"] == pytest.approx(RATE, rel=1e-3)
    assert moved[f"{block}/mlp_norm/gain"] == pytest.approx(0.1 * RATE, rel=1e-3)


def test_a_rule_that_matches_nothing_is_refused(net):
    with pytest.raises(UserError, match=r"'encoder/.*' matches no parameter; among them are conv/bias"):
        AdamW(rules=(Rule(pattern="encoder/.*"),)).build(STEPS, net)


def test_no_pattern_takes_long(net):
    """As a regular expression with nested repetitions does, tried on a name that it does not match."""
    patterns = ["^(([a-z_/]+)+)+$X", "*" + "*[a-z_/]" * 30 + "X", "*a" * 10000 + "X"]
    for pattern in patterns:
        start = time.process_time()
        with pytest.raises(UserError, match="matches no parameter"):
            AdamW(rules=(Rule(pattern=pattern),)).build(STEPS, net)
        assert time.process_time() - start < 5


def test_the_rate_is_that_of_the_schedule():
    assert float(AdamW(learning_rate=0.2, schedule=Line(warmup=0)).rate(10)(5)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0: must not be negative"),
        (["optimizer.weight_decay=-0.1"], "optimizer.weight_decay=-0.1: must not be negative"),
        (["optimizer.clip=-1"], "optimizer.clip=-1.0: must not be negative"),
        (["optimizer=AdamW", "optimizer.b1=2"], "optimizer.b1=2.0: must lie in [0, 1)"),
        (["optimizer=AdamW", "optimizer.b2=1"], "optimizer.b2=1.0: must lie in [0, 1)"),
        (["optimizer=AdamW", "optimizer.eps=-1"], "optimizer.eps=-1.0: must not be negative"),
        (["optimizer=Lion", "optimizer.b2=-0.1"], "optimizer.b2=-0.1: must lie in [0, 1)"),
        (["optimizer=Adafactor", "optimizer.momentum=1"], "optimizer.momentum=1.0: must lie in [0, 1)"),
        (["optimizer=Muon", "optimizer.momentum=1.5"], "optimizer.momentum=1.5: must lie in [0, 1)"),
    ],
)
def test_values_out_of_range_are_refused_by_their_key(words, says):
    with pytest.raises(UserError) as error:
        resolve(load_experiment("interactions"), words)
    assert str(error.value) == says
