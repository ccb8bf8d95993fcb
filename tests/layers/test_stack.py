"""A stack runs its blocks in order, however it is compiled and whatever it keeps for the backward pass."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers.attention import Block
from mmjax.layers.linear import Linear
from mmjax.layers.stack import Stack
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw, layers

WIDTH, DEPTH = 8, 3
RULES = PRESETS["data"]
WAYS = [
    {"remat": "none"},
    {"remat": "none", "unroll": True},
    {"remat": "full"},
    {"remat": "weights"},
    {"remat": "dots", "unroll": True},
    {"remat": "dots_no_batch"},
]


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def make(**way):
    return draw(
        lambda rngs: Stack(
            lambda rngs: Block(WIDTH, 2, hidden=8, rate=0.2, rules=RULES, rngs=rngs),
            DEPTH,
            **way,
            rngs=rngs,
        )
    )


INPUT = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
MASK = np.asarray([[True, True, False], [False, True, True]])
KEY = 3


def split(array):
    return jax.device_put(array, RULES.spec("batch"))


def run(stack, x):
    return stack(x, split(MASK), key=jax.random.key(KEY))


def loss(stack, x):
    y, between = run(stack, x)
    return jnp.sum(jnp.sin(y)), (y, between)


@functools.cache
def one_by_one():
    """Values and gradients of the same blocks called in a Python loop."""
    stack = make()

    def loop(stack, x):
        between = []
        for block, key in zip(layers(stack), jax.random.split(jax.random.key(KEY), DEPTH), strict=True):
            x = block(x, split(MASK), key)
            between.append(x)
        return jnp.sum(jnp.sin(x)), (x, jnp.stack(between))

    gradient = jax.jit(jax.value_and_grad(loop, argnums=(0, 1), has_aux=True))
    return gradient(stack, split(INPUT))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_computes_the_same(way):
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    actual, expected = gradient(make(**way), split(INPUT)), one_by_one()
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for ours, theirs in leaves:
        assert np.abs(np.asarray(theirs)).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def products(**way) -> int:
    """Matrix products in the gradient of a stack, each counted once."""
    gradient = jax.grad(lambda stack, x: loss(stack, x)[0])
    return str(jax.make_jaxpr(gradient)(make(**way), split(INPUT))).count("dot_general[")


def test_policies_recompute_what_they_say():
    # 8 products forward (query, key, value, out, up, down and two of attention), two more for each of them backward.
    assert products(remat="none") == 3 * 8
    assert products(remat="dots") == products(remat="weights") == products(remat="none")
    # The two products of attention have batch dimensions.
    assert products(remat="none") < products(remat="dots_no_batch") < products(remat="full")


def kept(remat: str) -> int:
    """Numbers that a device keeps for the backward pass of a stack whose weights are split over eight."""
    rules = PRESETS["fsdp"]
    with jax.set_mesh(MeshShape(data=1, fsdp=8).build()):
        block = functools.partial(Block, WIDTH, 2, hidden=8, rules=rules)
        stack = jax.eval_shape(
            lambda key: Stack(lambda rngs: block(rngs=rngs), DEPTH, remat=remat, rngs=nnx.Rngs(key)),
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        x = jax.ShapeDtypeStruct(
            (8, 3, WIDTH), jnp.float32, sharding=jax.NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        )
        pullback = jax.eval_shape(lambda stack, x: jax.vjp(lambda stack, x: stack(x, None)[0], stack, x)[1], stack, x)
        return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(pullback))


def test_gathered_weights_are_kept_or_gathered_again():
    weights = DEPTH * 6 * WIDTH * WIDTH
    assert kept("none") > weights
    assert kept("none") - kept("weights") >= 0.8 * weights
    assert kept("full") <= kept("weights")


def test_a_loop_is_compiled_once_and_an_unrolled_stack_block_by_block():
    def text(**way):
        lowered = jax.jit(lambda stack, x: stack(x, None)[0]).lower(make(**way), split(INPUT))
        return lowered.compile().as_text()

    assert "while(" in text()
    assert "while(" not in text(unroll=True)


def test_layers_start_differently():
    make = functools.partial(Linear, (4, 8), (None, None), rules=RULES)
    stack = Stack(lambda rngs: make(rngs=rngs), DEPTH, rngs=nnx.Rngs(0))
    kernel = np.asarray(stack.blocks.kernel[...])
    assert kernel.shape == (DEPTH, 4, 8)
    assert len({array.tobytes() for array in kernel}) == DEPTH
