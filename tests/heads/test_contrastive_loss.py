"""Losses of all pairs in chunks, against what they are when everything is in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.heads import contrastive_loss
from mmjax.heads.contrastive_loss import contrastive_losses
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

SIZE, WIDTH = 48, 5
MESHES = {
    "one": (MeshShape(data=1), "data"),
    "data": (MeshShape(data=8), "data"),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), "fsdp_tensor"),
}


def make(size=SIZE, width=WIDTH):
    rng = np.random.default_rng(0)
    sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in rng.normal(size=(2, size, width))]
    weights = rng.uniform(0.5, 1, size)
    there = rng.uniform(size=size) < 0.8
    return *(side.astype(np.float32) for side in sides), there, weights.astype(np.float32)


def dense(first, second, scale, bias):
    """As the papers write them, of those that are there; in double precision under `jax.enable_x64`."""
    logits = scale * first @ second.T
    if bias is not None:
        signs = 2 * jnp.eye(len(first)) - 1
        return jax.nn.softplus(-signs * (logits + bias)).sum(1)
    return -(jnp.diag(jax.nn.log_softmax(logits, 0)) + jnp.diag(jax.nn.log_softmax(logits, 1))) / 2


def exact(first, second, there, weights, scale, bias):
    """Losses of those that are there, and the gradients of their weighted sum with respect to all sides."""
    with jax.enable_x64(True):
        sides = [jnp.asarray(side, jnp.float64) for side in (first, second)]

        def total(first, second, scale, bias):
            losses = dense(first[there], second[there], scale, bias)
            return (weights[there].astype(np.float64) * losses).sum(), losses

        wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
        gradients, losses = jax.grad(total, wanted, has_aux=True)(*sides, scale, bias)
        return np.asarray(losses), jax.device_get(gradients)


def in_chunks(name, first, second, there, weights, scale, bias):
    """Losses, who is right, and the gradients of the weighted sum, on a mesh."""
    shape, preset = MESHES[name]
    rules = PRESETS[preset]
    with jax.set_mesh(shape.build()):
        split = jax.NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        given = jax.device_put((first, second, there, weights), split)

        def total(first, second, scale, bias, there, weights):
            losses, right = contrastive_losses(first, second, there, scale, bias, rules)
            return jnp.where(there, weights * losses, 0).sum(), (losses, right)

        wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)
        step = jax.jit(jax.value_and_grad(total, wanted, has_aux=True))
        scalars = [None if value is None else jnp.float32(value) for value in (scale, bias)]
        (_, aux), gradients = step(*given[:2], *scalars, *given[2:])
        return jax.device_get((*aux, gradients))


@pytest.mark.parametrize("chunk", [4, 1024])
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("bias", [None, -3.0], ids=["infonce", "siglip"])
def test_chunks_are_the_whole(name, bias, chunk, monkeypatch):
    """Values and gradients of every row; 6 rows a device of eight, in chunks of 4, do not divide."""
    monkeypatch.setattr(contrastive_loss, "CHUNK", chunk)
    first, second, there, weights = make()
    losses, right, gradients = in_chunks(name, first, second, there, weights, 7.0, bias)
    expected, slopes = exact(first, second, there, weights, 7.0, bias)
    np.testing.assert_allclose(losses[there], expected, rtol=1e-5)
    nearest = (first[there] @ second[there].T).argmax(1)
    np.testing.assert_array_equal(right[there], nearest == np.arange(there.sum()))
    for ours, theirs in zip(gradients, slopes, strict=True):
        assert np.linalg.norm(theirs) > 0
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("bias", [None, -10.0], ids=["infonce", "siglip"])
def test_memory_grows_with_the_batch_and_not_its_square(bias):
    def needed(size):
        with jax.set_mesh(MeshShape(data=8).build()):
            mesh, rules = jax.sharding.get_mesh(), PRESETS["data"]
            rows, there = (
                jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, rules.spec("batch", *whole)))
                for shape, dtype, whole in (((size, 64), jnp.float32, [None]), ((size,), bool, []))
            )
            scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * (1 if bias is None else 2)

            def total(first, second, there, scale, *rest):
                return contrastive_losses(first, second, there, scale, *(rest or [None]), rules)[0].sum()

            compiled = jax.jit(jax.grad(total, (0, 1))).lower(rows, rows, there, *scalars).compile()
            return compiled.memory_analysis().temp_size_in_bytes

    small, large = needed(16384), needed(32768)
    assert large < 2.2 * small
    assert large < 32768 * 32768 / 8 * 4  # a device's share of all similarities, of which a dense loss keeps several


def test_several_models_at_once():
    """As runs that train together compute it."""
    first, second, there, weights = make()
    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=8).build()):
        mesh = jax.sharding.get_mesh()
        both = jax.device_put(np.stack([first, -first]), jax.NamedSharding(mesh, rules.spec(None, "batch", None)))
        other = jax.device_put(second, jax.NamedSharding(mesh, rules.spec("batch", None)))
        real = jax.device_put(there, jax.NamedSharding(mesh, rules.spec("batch")))

        def one(first):
            return contrastive_losses(first, other, real, jnp.float32(7.0), None, rules)[0]

        losses = jax.device_get(jax.jit(jax.vmap(one))(both))
    for side, found in zip((first, -first), losses, strict=True):
        expected, _ = exact(side, second, there, weights, 7.0, None)
        np.testing.assert_allclose(found[there], expected, rtol=1e-5)


def test_nothing_is_split_where_all_is_whole():
    first, second, there, weights = make()
    with jax.set_mesh(MeshShape(data=1).build()):
        local = functools.partial(
            contrastive_losses, scale=jnp.float32(7.0), bias=None, rules=PRESETS["data"], rows=None
        )
        losses, _ = jax.jit(local)(first, second, there)
    np.testing.assert_allclose(losses[there], exact(first, second, there, weights, 7.0, None)[0], rtol=1e-5)
