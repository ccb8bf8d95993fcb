"""Rollout against plain NumPy in float64, in which tokens carry their shares forward."""

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.encoders import AudioTransformer
from mmjax.evaluation.rollout import rollout
from mmjax.fusion import Concat, CrossAttention, Multiway, SingleStream
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests import reference
from tests.evaluation.test_attribution import MODEL, build, compiled, some_batch
from tests.reference import linear, norm, softmax, wide
from tests.small import SIZE, put

RULES = PRESETS["data"]
NAMES = ("image", "speech", "text")


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def look(layer, x, context, mask):
    """Weights [N M] of one example's tokens, the mean of the heads."""
    query, key = linear(layer.query, x), linear(layer.key, context)
    heads = [query[:, head] @ key[:, head].T / np.sqrt(query.shape[2]) for head in range(query.shape[1])]
    weights = np.zeros((len(x), len(context)))
    if mask.any():
        weights[:, mask] = np.mean([softmax(scores[:, mask]) for scores in heads], 0)
    return weights


def carry(shares, weights, seen):
    """Shares [N T] of tokens that have read others' with weights [N M]."""
    return (shares + weights @ seen) / (1 + weights.sum(1, keepdims=True))


def read(block, x, mask, shares):
    """Self-attention's part of a block."""
    normed = norm(block.attention_norm, x[None])[0]
    return carry(shares, look(block.attention, normed, normed, mask), shares)


def pass_exchange(layer, values, masks, shares):
    """One example's values and shares behind a block of co-attention."""
    after, told = {}, {}
    for name in NAMES:
        x, mask, own = values[name], masks[name], shares[name]
        block = layer.others[name] if name in layer.others else layer.readers[name].block
        if name in layer.readers:
            reader, rest = layer.readers[name], [other for other in NAMES if other != name]
            context, seen = (np.concatenate([each[other] for other in rest]) for each in (values, masks))
            gate = 1.0 if reader.gate is None else np.tanh(wide(reader.gate))
            query, normed = norm(reader.norm, x), norm(reader.context_norm, context)
            weights = look(reader.cross, query, normed, seen) * abs(gate)
            own = carry(own, weights, np.concatenate([shares[other] for other in rest]))
            x = x + gate * reference.attention(reader.cross, query[None], normed[None], seen[None])[0]
        told[name] = read(block, x, mask, own)
        after[name] = reference.block(block, x[None], mask[None])[0]
    return after, told


def pass_joint(layer, values, masks, shares):
    x, mask, own = (np.concatenate([each[name] for name in NAMES]) for each in (values, masks, shares))
    if hasattr(layer, "block"):
        own = read(layer.block, x, mask, own)
        x = reference.block(layer.block, x[None], mask[None])[0]
    else:
        normed = norm(layer.norm, x)
        own = carry(own, look(layer.attention, normed, normed, mask), own)
        x = x + reference.attention(layer.attention, normed[None], mask=mask[None])[0]
    ends = np.cumsum([len(masks[name]) for name in NAMES])[:-1]
    parts, owns = (dict(zip(NAMES, np.split(each, ends), strict=True)) for each in (x, own))
    if not hasattr(layer, "block"):
        parts = {
            name: part + reference.mlp(layer.mlps[name], norm(layer.norms[name], part)) for name, part in parts.items()
        }
    return parts, owns


def by_hand(model, streams, row):
    """What the pooling of one example reads of each token that the encoders made."""
    fusion, values, masks = model.fusion, {}, {}
    for index, name in enumerate(NAMES):
        values[name] = np.asarray(streams[name].values[row], np.float64) + wide(fusion.kind)[index]
        masks[name] = np.asarray(streams[name].mask[row])
        if streams[name].time is not None:
            time = np.asarray(streams[name].time[row], np.float64)
            values[name] = values[name] + reference.time_embedding(time, values[name].shape[1])
    ends = np.cumsum([len(masks[name]) for name in NAMES])
    shares = dict(zip(NAMES, np.split(np.eye(ends[-1]), ends[:-1]), strict=True))
    for layer in reference.layers(fusion.stack):
        go = pass_exchange if hasattr(layer, "readers") else pass_joint
        values, shares = go(layer, values, masks, shares)
    x, mask, own = (np.concatenate([each[name] for name in NAMES]) for each in (values, masks, shares))
    pooled = norm(fusion.pool.norm, norm(fusion.norm, x))
    weights = look(fusion.pool.attention, wide(fusion.pool.probe), pooled, mask) @ own
    return dict(zip(NAMES, np.split(weights[0], ends[:-1]), strict=True))


@pytest.mark.parametrize(
    "fusion",
    [
        CrossAttention(depth=2, heads=2),
        CrossAttention(depth=2, heads=2, gated=True, target="speech"),
        SingleStream(depth=2, heads=2),
        Multiway(depth=2, heads=2),
    ],
    ids=["all", "target", "single", "multiway"],
)
def test_shares_are_those_that_tokens_carry_forward(fusion):
    encoders = {**MODEL.encoders, "speech": AudioTransformer(depth=1, heads=2)}
    model, batch = build(chz.replace(MODEL, encoders=encoders, fusion=fusion)), put(some_batch(), RULES)
    nothing = jnp.zeros((SIZE, 1), int), jnp.ones((SIZE, 1), bool)
    found, streams = compiled(
        lambda model, batch: (rollout(model, "label", *nothing, batch), model.encode(batch, None)[0])
    )(model, batch)
    assert set(found) == set(NAMES)
    total = sum(np.asarray(shares).sum(1) for shares in found.values())
    np.testing.assert_allclose(total, np.arange(SIZE) != 2, atol=1e-5)  # example 2 has nothing
    for row in (0, 1, 3):
        expected = by_hand(model, streams, row)
        for name in NAMES:
            np.testing.assert_allclose(found[name][row], expected[name], atol=1e-4)


def test_where_nothing_attends_there_is_none():
    model = build(chz.replace(MODEL, fusion=Concat(hidden=8)))
    asked = jnp.zeros((SIZE, 1), int), jnp.ones((SIZE, 1), bool)
    assert rollout(model, "label", *asked, put(some_batch(), RULES)) is None
