"""Fusions of token streams against plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.fusion import Bottleneck, CrossAttention, Experts, Multiway, Resampler, SingleStream
from mmjax.fusion.experts import balance_loss
from tests import reference
from tests.fusion.streams import LENGTHS, SETTINGS, WIDTH, build, close, make_streams, run
from tests.reference import wide

ALL = ("image", "speech", "text")
both = pytest.mark.parametrize("modalities", [ALL, ("speech",)], ids=len)


def start(fusion, streams, modalities):
    """Values by modality with its kind and time added, and masks."""
    values = {}
    for index, name in enumerate(modalities):
        values[name] = np.asarray(streams[name].values, np.float64) + wide(fusion.kind)[index]
        if streams[name].time is not None:
            values[name] = values[name] + reference.time_embedding(np.asarray(streams[name].time, np.float64), WIDTH)
    return values, {name: np.asarray(streams[name].mask) for name in modalities}


def concat_streams(parts, modalities):
    return np.concatenate([parts[name] for name in modalities], 1)


def cut(x, like, modalities):
    ends = np.cumsum([like[name].shape[1] for name in modalities])
    return dict(zip(modalities, np.split(x, ends[:-1], 1), strict=True))


def check(config, modalities, expected):
    """Expected: from the module, values and masks to the tokens before the norm, and their mask."""
    fusion, streams = build(config, modalities), make_streams(modalities)
    tokens, pooled = run(fusion, streams)
    x, mask = expected(fusion, *start(fusion, streams, modalities))
    x = reference.norm(fusion.norm, x)
    np.testing.assert_array_equal(tokens.mask, mask)
    close(np.asarray(tokens.values)[mask], x[mask], 2e-4)
    close(pooled, reference.pool(fusion.pool, x, mask), 2e-4)
    assert not np.asarray(pooled)[2].any()


@both
def test_single_stream(modalities):
    def expected(fusion, values, masks):
        x, mask = concat_streams(values, modalities), concat_streams(masks, modalities)
        for layer in reference.layers(fusion.stack):
            x = reference.block(layer.block, x, mask)
        return x, mask

    check(SingleStream(depth=2, heads=2), modalities, expected)


@both
def test_multiway(modalities):
    def expected(fusion, values, masks):
        mask = concat_streams(masks, modalities)
        for layer in reference.layers(fusion.stack):
            x = concat_streams(values, modalities)
            x = x + reference.attention(layer.attention, reference.norm(layer.norm, x), mask=mask)
            values = {
                name: part + reference.mlp(layer.mlps[name], reference.norm(layer.norms[name], part))
                for name, part in cut(x, values, modalities).items()
            }
        return concat_streams(values, modalities), mask

    check(Multiway(depth=2, heads=2), modalities, expected)


def cross(layer, x, mask, context, context_mask):
    normed = reference.norm(layer.context_norm, context)
    seen = reference.attention(layer.cross, reference.norm(layer.norm, x), normed, context_mask)
    gate = 1 if layer.gate is None else np.tanh(wide(layer.gate))
    return reference.block(layer.block, x + gate * seen, mask)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("modalities", "target"), [(ALL, None), (ALL, "speech"), (("speech",), None)], ids=["all", "target", "single"]
)
def test_cross_attention(modalities, target, gated):
    def expected(fusion, values, masks):
        for layer in reference.layers(fusion.stack):
            old, values = values, {}
            for name in modalities:
                others = [other for other in modalities if other != name]
                if others and target in (None, name):
                    context = concat_streams(old, others), concat_streams(masks, others)
                    values[name] = cross(layer.readers[name], old[name], masks[name], *context)
                else:
                    values[name] = reference.block(layer.others[name], old[name], masks[name])
        return concat_streams(values, modalities), concat_streams(masks, modalities)

    check(CrossAttention(depth=2, heads=2, gated=gated, target=target), modalities, expected)


def test_a_gate_starts_closed():
    """Then no modality knows of another."""
    fusion = CrossAttention(gated=True, depth=1).build(ALL, SETTINGS, nnx.Rngs(0))
    streams = make_streams(ALL)
    alone = {**streams, "text": make_streams(ALL, seed=1)["text"]}
    first, second = (np.asarray(run(fusion, given)[0].values) for given in (streams, alone))
    np.testing.assert_array_equal(first[:, :7], second[:, :7])
    assert (first[:, 7:] != second[:, 7:]).any()


@both
def test_resampler(modalities):
    def expected(fusion, values, masks):
        x, mask = concat_streams(values, modalities), concat_streams(masks, modalities)
        latents = np.tile(wide(fusion.latents), (4, 1, 1))
        for layer in reference.layers(fusion.stack):
            latents = cross(layer, latents, None, x, mask)
        return latents, np.tile(mask.any(1)[:, None], (1, 5))

    check(Resampler(latents=5, depth=2, heads=2), modalities, expected)


def narrow(layer, x, mask, latents):
    """A block in which tokens attend to the latents, which are last, and these to all."""
    normed = reference.norm(layer.attention_norm, x)
    told = [
        reference.attention(layer.attention, normed[:, :-latents], normed[:, -latents:], mask[:, -latents:]),
        reference.attention(layer.attention, normed[:, -latents:], normed, mask),
    ]
    x = x + np.concatenate(told, 1)
    return x + reference.mlp(layer.mlp, reference.norm(layer.mlp_norm, x))


@both
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("own", [False, True])
def test_bottleneck(modalities, first, own):
    def expected(fusion, values, masks):
        there = np.tile(concat_streams(masks, modalities).any(1)[:, None], (1, 3))
        latents = np.tile(wide(fusion.latents), (4, 1, 1))
        assert fusion.together.depth == 2 - first
        if first:
            (layer,) = reference.layers(fusion.apart)
            values = {name: reference.block(layer.blocks[name], x, masks[name]) for name, x in values.items()}
        for layer in reference.layers(fusion.together):
            total, count = np.zeros_like(latents), np.zeros((4, 1, 1))
            for name in modalities:
                x, mask = np.concatenate([values[name], latents], 1), np.concatenate([masks[name], there], 1)
                block = layer.blocks[name]
                x = reference.block(block, x, mask) if own else narrow(block, x, mask, 3)
                values[name] = x[:, :-3]
                real = masks[name].any(1)[:, None, None]
                total, count = total + real * x[:, -3:], count + real
            latents = total / np.maximum(count, 1)
        return np.concatenate([concat_streams(values, modalities), latents], 1), np.concatenate(
            [concat_streams(masks, modalities), there], 1
        )

    check(Bottleneck(latents=3, depth=2, fusion_start=first, heads=2, self_attention=own), modalities, expected)


def experts(layer, x, mask, lengths, chosen, capacity):
    """What the experts add to the normed tokens x, token by token; and the balancing loss."""
    count, routers = layer.experts.up.shape[0], wide(layer.routers)
    kinds = np.repeat(np.arange(len(lengths)), lengths)
    wishes = np.stack([reference.softmax(x[:, n] @ routers[kind]) for n, kind in enumerate(kinds)], 1)
    added = np.zeros_like(x)
    for b in range(len(x)):
        wanted = [
            (wishes[b, n, e], n, e) for n in range(x.shape[1]) if mask[b, n] for e in np.argsort(-wishes[b, n])[:chosen]
        ]
        for expert in range(count):
            for gate, n, _ in sorted((wish for wish in wanted if wish[2] == expert), reverse=True)[:capacity]:
                hidden = reference.gelu(x[b, n] @ wide(layer.experts.up)[expert])
                added[b, n] += gate * (hidden @ wide(layer.experts.down)[expert])
    first, mean = np.zeros(count), np.zeros(count)
    for kind in range(len(lengths)):
        real = wishes[:, kinds == kind][mask[:, kinds == kind]]
        first += np.eye(count)[real.argmax(1)].mean(0) / len(lengths)
        mean += real.mean(0) / len(lengths)
    return added, count * (first * mean).sum()


@both
@pytest.mark.parametrize(("capacity", "places"), [(4.0, 9), (0.5, 3)], ids=["roomy", "crowded"])
def test_experts(modalities, capacity, places):
    lengths = [LENGTHS[name] for name in modalities]
    places = min(sum(lengths), places if len(modalities) > 1 else {9: 3, 3: 1}[places])
    config = Experts(experts=3, top_k=2, capacity_factor=capacity, balance_weight=0.5, depth=2, heads=2)
    losses = []

    def expected(fusion, values, masks):
        x, mask = concat_streams(values, modalities), concat_streams(masks, modalities)
        for layer in reference.layers(fusion.stack):
            x = x + reference.attention(layer.attention, reference.norm(layer.norm, x), mask=mask)
            added, loss = experts(layer, reference.norm(layer.expert_norm, x), mask, lengths, 2, places)
            x = x + added
            losses.append(loss)
        return x, mask

    check(config, modalities, expected)
    _, _, between = build(config, modalities)(make_streams(modalities), None)
    close(between["losses"]["balance"], 0.5 * np.mean(losses))


@pytest.mark.parametrize("part", ["task", "balance"])
def test_routers_learn(part):
    """From what their experts answer and from the balancing loss, by finite differences."""
    fusion, streams = build(Experts(experts=3, top_k=2, balance_weight=0.5, depth=2, heads=2), ALL), make_streams(ALL)
    weights = np.random.default_rng(2).normal(size=(4, 9, WIDTH)).astype(np.float32)

    def loss(routers):
        other = jax.tree.map(jnp.asarray, fusion)
        other.stack.blocks.routers[...] = routers
        tokens, _, between = other(streams, None)
        values = jnp.where(tokens.mask[..., None], tokens.values, 0)
        return (values * weights).sum() if part == "task" else between["losses"]["balance"]

    # So short a step that no token changes its experts.
    np.testing.assert_allclose(*reference.slopes(loss, fusion.stack.blocks.routers[...], 1e-4), rtol=0.03)


def test_the_balancing_loss_is_differentiated_by_the_mean_share():
    """E sum F_e P_e over the square of the modalities: E F_e / tokens / modalities^2 by each token's p_e."""
    rng = np.random.default_rng(0)
    shares = {name: jnp.asarray(rng.dirichlet(np.ones(3), (2, length))) for name, length in (("image", 4), ("text", 5))}
    masks = {"image": jnp.ones((2, 4), bool), "text": jnp.arange(5)[None] < jnp.asarray([[5], [2]])}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    first = sum(np.eye(3)[np.asarray(shares[name].argmax(-1))[masks[name]]].mean(0) for name in shares)
    for name, slope in jax.grad(balance_loss)(shares, masks).items():
        close(slope, np.broadcast_to(3 * first / counts[name] / 4, slope.shape))


def test_a_balanced_load_costs_least():
    even = np.full((2, 6, 3), 0.33)
    even[:, [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]] = 0.34
    mask = {"image": jnp.ones((2, 6), bool)}
    close(balance_loss({"image": jnp.asarray(even)}, mask), 1, 0.02)
    crowded = jnp.tile(jnp.asarray([0.9, 0.05, 0.05]), (2, 6, 1))
    close(balance_loss({"image": crowded}, mask), 2.7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resampler(latents=0), "latents must be 1 or more"),
        (lambda: Bottleneck(latents=0), "latents must be 1 or more"),
        (lambda: Experts(experts=2, top_k=3), "top_k=3 must be 1 or more and at most experts=2"),
        (lambda: Experts(capacity_factor=0), "capacity_factor must be positive"),
        (lambda: Bottleneck(depth=2, fusion_start=2), "fusion_start=2 must be 0 or more and less than depth=2"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("family", [SingleStream, CrossAttention, Bottleneck, Resampler, Multiway, Experts])
def test_heads_that_do_not_divide_the_width(family):
    with pytest.raises(UserError, match=r"model.fusion.heads=3 does not divide model.width=16") as error:
        family(heads=3).build(("image",), SETTINGS, nnx.Rngs(0))
    assert "\n" not in str(error.value)
