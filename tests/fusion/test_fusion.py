"""What holds of every fusion of the table."""

import inspect

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import fusion as families
from mmjax.fusion import TABLE, Experts, Fusion
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Tokens
from tests.fusion.streams import WIDTH, build, close, make_streams, run
from tests.reference import draw


def test_the_table_has_every_fusion():
    """Every configuration that the folder's files make a class of, under its own name."""
    made = {
        name: kind
        for name, kind in vars(families).items()
        if inspect.isclass(kind) and issubclass(kind, Fusion) and kind is not Fusion
    }
    assert made == TABLE


@pytest.mark.parametrize("name", TABLE)
def test_what_an_absent_modality_holds_does_not_matter(name):
    modalities = ("image", "speech", "text")
    streams = make_streams(modalities)
    fusion = build(TABLE[name](), modalities)
    hidden = {
        key: Tokens(jnp.where(tokens.mask[..., None], tokens.values, 1e3), tokens.mask, tokens.time)
        for key, tokens in streams.items()
    }
    (tokens, pooled), (other_tokens, other) = run(fusion, streams), run(fusion, hidden)
    assert np.isfinite(pooled).all()
    assert np.abs(np.asarray(pooled)[:2]).max() > 1e-2
    np.testing.assert_array_equal(pooled, other)
    real = np.asarray(tokens.mask)
    np.testing.assert_array_equal(np.asarray(tokens.values)[real], np.asarray(other_tokens.values)[real])


def loss_and_gradients(config, shape, preset, **options):
    """On a mesh of that shape under that rule table: a loss of the summary and its gradients by path, on the host."""
    modalities = ("image", "speech", "text")
    rules = PRESETS[preset]
    settings = Settings(width=WIDTH, rules=rules, **options)
    with jax.set_mesh(shape.build()):
        fusion = draw(lambda rngs: config.build(modalities, settings, rngs), scale=0.2)
        streams = make_streams(modalities, rules)

        def loss(fusion, streams):
            return (fusion(streams, None)[1] ** 3).mean()

        value, gradients = jax.jit(jax.value_and_grad(loss))(fusion, streams)
        return jax.device_get((value, jax.tree.leaves(gradients)))


@pytest.mark.parametrize("name", TABLE)
def test_sharding_changes_nothing(name):
    config = TABLE[name]()
    value, gradients = loss_and_gradients(config, MeshShape(data=1), "data")
    shape = MeshShape(fsdp=2, tensor=2)
    other, others = loss_and_gradients(config, shape, "fsdp_tensor")
    close(other, value)
    assert len(gradients) == len(others)
    for one, two in zip(gradients, others, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_experts_on_devices_of_their_own_change_nothing():
    config = Experts(capacity_factor=0.5)
    value, gradients = loss_and_gradients(config, MeshShape(data=1), "data")
    other, others = loss_and_gradients(config, MeshShape(data=1, expert=2, tensor=2), "tensor")
    close(other, value)
    for one, two in zip(gradients, others, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_experts_lie_on_their_devices():
    with jax.set_mesh(MeshShape(data=1, expert=2).build()):
        settings = Settings(width=WIDTH, rules=PRESETS["data"])
        fusion = draw(lambda rngs: Experts().build(("image",), settings, rngs))
        up = fusion.stack.blocks.experts.up[...]
    assert up.sharding.shard_shape(up.shape)[1] == up.shape[1] // 2


@pytest.mark.parametrize("name", [name for name in TABLE if "depth" in chz.chz_fields(TABLE[name])])
def test_rematerialising_and_unrolling_change_nothing(name):
    shape = MeshShape(data=1)
    value, gradients = loss_and_gradients(TABLE[name](), shape, "data")
    other, others = loss_and_gradients(TABLE[name](), shape, "data", remat="full", unroll=True)
    close(other, value)
    for one, two in zip(gradients, others, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
