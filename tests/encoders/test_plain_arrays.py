"""Encoders and fusions in a loop of one's own, with plain arrays: without a mesh, and under one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mmjax as mm
from mmjax.config.schema import choices
from mmjax.fusion.base import Fusion
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Image, Text, Tokens

RULES = PRESETS["data"]
SETTINGS = Settings(width=16, rules=RULES)
CLASSES = 4


def build(fusion: mm.Fusion) -> tuple:
    """An image encoder, a text encoder, and the fusion of both."""
    rngs = nnx.Rngs(0)
    image = mm.ViT(patch=4, depth=2, heads=2).build(Image(8, 8, 3), SETTINGS, rngs)
    text = mm.TextTransformer(depth=2, heads=2).build(Text(6, 32), SETTINGS, rngs)
    return image, text, fusion.build(("image", "text"), SETTINGS, rngs)


def examples() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    mask = np.arange(6) < rng.integers(1, 7, (8, 1))
    return rng.random((8, 8, 8, 3), np.float32), rng.integers(1, 32, (8, 6)), mask, rng.integers(0, CLASSES, 8)


def loss(model: tuple, image: jax.Array, ids: jax.Array, mask: jax.Array, label: jax.Array) -> jax.Array:
    see, read, fuse = model
    streams = {"image": see(image, None, None)[0], "text": read(ids, mask, None)[0]}
    _, pooled, _ = fuse(streams, None)
    return optax.softmax_cross_entropy_with_integer_labels(pooled[:, :CLASSES], label).mean()


@pytest.mark.parametrize("fusion", [mm.Concat(), mm.SingleStream(heads=2), mm.Bottleneck(heads=2)])
def test_a_loop_of_ones_own_learns_without_a_mesh(fusion: mm.Fusion):
    model, given, optimizer = build(fusion), examples(), optax.adam(1e-2)

    @jax.jit
    def step(model, state, *given):
        value, gradients = jax.value_and_grad(loss)(model, *given)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(model, updates), state, value

    state, losses = optimizer.init(model), []
    for _ in range(20):
        model, state, value = step(model, state, *given)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


def check_gradients(build, loss, *given) -> None:
    """The loss and the gradients of a model with plain arrays, and with the same split over a mesh."""
    bare = jax.jit(lambda *given: jax.value_and_grad(loss)(build(), *given))(*given)
    with jax.set_mesh(MeshShape(data=1).build(jax.devices()[:1])):
        split = jax.device_put(given, RULES.spec("batch"))
        meshed = jax.jit(lambda *given: jax.value_and_grad(loss)(build(), *given))(*split)
    ours, theirs = jax.tree.leaves(bare), jax.tree.leaves(meshed)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 + 1e-4 * float(jnp.abs(other).max()))
    assert max(float(jnp.abs(leaf).max()) for leaf in ours) > 0


def test_gradients_are_those_under_a_mesh():
    check_gradients(lambda: build(mm.SingleStream(heads=2)), loss, *examples())


@pytest.mark.parametrize("name", sorted(choices(Fusion)))
def test_gradients_of_a_fusion_are_those_under_a_mesh(name: str):
    rng = np.random.default_rng(0)
    values = {"image": rng.normal(size=(8, 4, 16)), "text": rng.normal(size=(8, 6, 16))}
    mask = {"image": np.ones((8, 4), bool), "text": np.arange(6) < rng.integers(1, 7, (8, 1))}
    streams = {each: Tokens(jnp.asarray(values[each], jnp.float32), jnp.asarray(mask[each])) for each in values}

    def of_pooled(fuse, streams):
        return (fuse(streams, None)[1] ** 3).mean()

    config = choices(Fusion)[name]()
    check_gradients(lambda: config.build(("image", "text"), SETTINGS, nnx.Rngs(0)), of_pooled, streams)


def test_a_batch_that_is_not_split_over_the_mesh_is_a_sentence():
    with jax.set_mesh(MeshShape(data=1).build(jax.devices()[:1])):
        fuse = mm.SingleStream(heads=2).build(("image",), SETTINGS, nnx.Rngs(0))
        tokens = Tokens(jnp.ones((4, 3, 16)), jnp.ones((4, 3), bool))
        with pytest.raises(mm.UserError, match=r"^a batch is not split over the mesh .* jax.device_put\(batch, "):
            jax.jit(lambda tokens: fuse({"image": tokens}, None)[1])(tokens)
        fuse({"image": jax.device_put(tokens, RULES.spec("batch"))}, None)
