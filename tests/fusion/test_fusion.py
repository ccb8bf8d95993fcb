"""Fusions against plain NumPy in float64."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.fusion import TABLE, Concat, CrossAttention
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Tokens
from tests import reference
from tests.reference import QUICK, draw, wide

WIDTH = 16
RULES = PRESETS["data"]
SETTINGS = Settings(width=WIDTH, rules=RULES)
LENGTHS = {"image": 4, "speech": 3, "text": 2}


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def make_streams(modalities):
    """Example 0 has everything, 1 lacks the first modality, 2 lacks all; speech has a time."""
    rng = np.random.default_rng(0)
    streams = {}
    for index, name in enumerate(modalities):
        shape = (4, LENGTHS[name])
        mask = rng.uniform(size=shape) < 0.7
        mask[0] = True
        mask[1], mask[2] = index > 0, False
        time = rng.uniform(size=shape).astype(np.float32) if name == "speech" else None
        values = rng.normal(size=(*shape, WIDTH)).astype(np.float32)
        streams[name] = Tokens(*jax.device_put((values, mask, time), RULES.spec("batch")))
    return streams


def run(fusion, streams):
    compiled = jax.jit(lambda streams: fusion(streams, None)[:2], compiler_options=QUICK)
    return compiled(streams)


def build(config, modalities):
    return draw(lambda rngs: config.build(tuple(modalities), SETTINGS, rngs), scale=0.2)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def exchange(layer, x, mask, context, context_mask):
    normed = reference.norm(layer.context_norm, context)
    x = x + reference.attention(layer.cross, reference.norm(layer.norm, x), normed, context_mask)
    return reference.block(layer.block, x, mask)


def cross_attention(fusion, streams, modalities):
    masks = {name: np.asarray(streams[name].mask) for name in modalities}
    values = {}
    for index, name in enumerate(modalities):
        values[name] = np.asarray(streams[name].values, np.float64) + wide(fusion.kind)[index]
        if streams[name].time is not None:
            values[name] = values[name] + reference.time_embedding(np.asarray(streams[name].time, np.float64), WIDTH)
    for block in reference.layers(fusion.stack):
        old = values
        if len(modalities) == 1:
            values = {name: reference.block(block.block, x, masks[name]) for name, x in old.items()}
            continue
        values = {}
        for name in modalities:
            others = [other for other in modalities if other != name]
            context = np.concatenate([old[other] for other in others], 1)
            seen = np.concatenate([masks[other] for other in others], 1)
            values[name] = exchange(block.streams[name], old[name], masks[name], context, seen)
    x = reference.norm(fusion.norm, np.concatenate([values[name] for name in modalities], 1))
    mask = np.concatenate([masks[name] for name in modalities], 1)
    return x, mask, reference.pool(fusion.pool, x, mask)


@pytest.mark.parametrize("modalities", [("image", "speech", "text"), ("speech",)], ids=len)
def test_cross_attention(modalities):
    fusion = build(CrossAttention(depth=2, heads=2), modalities)
    streams = make_streams(modalities)
    tokens, pooled = run(fusion, streams)
    values, mask, summary = cross_attention(fusion, streams, modalities)
    np.testing.assert_array_equal(tokens.mask, mask)
    close(np.asarray(tokens.values)[mask], values[mask], 2e-4)
    close(pooled, summary, 2e-4)
    assert not np.asarray(pooled)[2].any()


def test_concat():
    modalities = ("image", "speech", "text")
    fusion, streams = build(Concat(hidden=24), modalities), make_streams(modalities)
    tokens, pooled = run(fusion, streams)
    means = []
    for index, name in enumerate(modalities):
        values, mask = np.asarray(streams[name].values, np.float64), np.asarray(streams[name].mask)
        mean = reference.masked_mean(values, mask)
        means.append(np.where(mask.any(1)[:, None], mean, wide(fusion.missing)[index]))
    hidden = reference.gelu(reference.linear(fusion.up, np.stack(means, 1)))
    close(pooled, reference.norm(fusion.norm, reference.linear(fusion.down, hidden)))
    close(tokens.values[:, 0], pooled)
    np.testing.assert_array_equal(tokens.mask, [[True], [True], [False], [True]])


def test_the_table_has_every_fusion():
    assert {"Concat": Concat, "CrossAttention": CrossAttention}.items() <= TABLE.items()


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_the_width(heads):
    with pytest.raises(UserError, match=f"model.fusion.heads={heads} does not divide model.width=16") as error:
        CrossAttention(heads=heads).build(("image",), SETTINGS, nnx.Rngs(0))
    assert "\n" not in str(error.value)
