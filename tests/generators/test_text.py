"""The text decoder against plain NumPy, its memories against the whole pass, its searches against trying everything."""

import dataclasses
import functools
import itertools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.generators import Decoding, TextDecoder
from mmjax.generators.decoding import decode, filter_logits
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.settings import Settings
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import END, Fused, Text, Tokens
from tests import reference
from tests.reference import draw, wide
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 6
PLAIN = TextDecoder(target="text", depth=2, heads=2)
# As language models are built, with the options that default to something else.
LLAMA = TextDecoder(
    target="text",
    depth=2,
    heads=4,
    width=24,
    block=BlockOptions(
        norm="layer", bias=True, activation="silu", gated=True, hidden=20, kv_heads=2, rope=20.0, epsilon=1e-5
    ),
    gated=True,
    tied=True,
)
RULES = PRESETS["data"]
SETTINGS = Settings(width=WIDTH, rules=RULES)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def batch():
    """Six examples of which the second has no text."""
    batch = make_batch(size=SIZE)
    batch.present["text"][1] = False
    return batch


@pytest.fixture(scope="module")
def fused():
    """Three fused tokens an example, some masked; the last example has none."""
    rng = np.random.default_rng(1)
    mask = rng.uniform(size=(SIZE, 3)) < 0.7
    mask[0], mask[-1] = True, False
    values = rng.normal(size=(SIZE, 3, WIDTH)).astype(np.float32)
    tokens = Tokens(*jax.device_put((values, mask), RULES.spec("batch")))
    return Fused(tokens, jax.device_put(values[:, 0], RULES.spec("batch")), {})


@pytest.fixture(scope="module")
def writer():
    return draw(lambda rngs: PLAIN.build(FEATURES, SETTINGS, rngs))


@pytest.fixture(scope="module")
def llama():
    return draw(lambda rngs: LLAMA.build(FEATURES, SETTINGS, rngs))


def expected_logits(writer, ids, values, mask):
    """Place by place, from the tokens before it alone."""
    table, position = wide(writer.embed.table), wide(writer.position)
    context = reference.norm(writer.decoder.context_norm, np.asarray(values, np.float64))
    x = np.stack([table[np.append(0, row[:-1])] for row in ids]) + position
    for block in reference.layers(writer.decoder.stack):
        normed = reference.norm(block.own_norm, x)
        own = [reference.attention(block.own, normed[:, n : n + 1], normed[:, : n + 1]) for n in range(ids.shape[1])]
        x = x + np.concatenate(own, 1)
        x = x + reference.attention(block.seen, reference.norm(block.seen_norm, x), context, np.asarray(mask))
        x = x + reference.mlp(block.mlp, reference.norm(block.mlp_norm, x))
    return reference.linear(writer.logits, reference.norm(writer.decoder.norm, x))


def test_loss_and_metrics(writer, batch, fused):
    loss, metrics = jax.jit(lambda writer, fused, batch: writer.loss(fused, batch, None, None))(
        writer, fused, put(batch, RULES)
    )
    ids, there = batch.values["text"], batch.mask["text"] & batch.present["text"][:, None]
    logits = expected_logits(writer, ids, fused.tokens.values, fused.tokens.mask)
    right, losses = logits.argmax(-1) == ids, -np.log(np.take_along_axis(reference.softmax(logits), ids[..., None], 2))
    np.testing.assert_allclose(loss.value(), losses[there].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].value(), right[there].mean(), rtol=1e-5)
    whole = [all(row[real]) for row, real in zip(right, there, strict=True) if real.any()]
    np.testing.assert_allclose(metrics["exact"].value(), np.mean(whole), rtol=1e-5)
    assert float(writer.weight(put(batch, RULES))) == there.sum() == float(loss.weight)


@pytest.mark.parametrize("kind", ["writer", "llama"])
def test_memories_give_what_the_whole_pass_gives(kind, request, batch, fused):
    """Also where an example has nothing to read."""
    writer = request.getfixturevalue(kind)
    ids = jnp.asarray(batch.values["text"])
    whole = jax.jit(lambda ids: writer(ids, fused, None))(ids)

    def step_by_step(ids):
        cache, seen = writer.decoder.init_cache(fused.tokens, ids.shape[1], writer.dtype), []
        for place in range(ids.shape[1]):
            last = ids[:, place - 1] if place else jnp.zeros_like(ids[:, 0])
            logits, cache = writer.step(last, jnp.int32(place), cache, fused.tokens.mask)
            seen.append(logits)
        return jnp.stack(seen, 1)

    np.testing.assert_allclose(jax.jit(step_by_step)(ids)[..., 1:], whole[..., 1:], atol=1e-4)


def test_what_is_written_is_likeliest_at_every_place(writer, fused):
    said = np.asarray(jax.jit(lambda fused: writer.predict(fused, None)["ids"])(fused))
    logits = expected_logits(writer, said, fused.tokens.values, fused.tokens.mask)
    logits[..., 0] = -np.inf
    for row, best in zip(said, logits.argmax(-1), strict=True):
        end = row.tolist().index(1) + 1 if 1 in row else len(row)
        assert row[:end].tolist() == best[:end].tolist()
        assert not row[end:].any()
    assert said.shape == (SIZE, 5)


MESHES = {
    "one": (MeshShape(data=1), PRESETS["data"]),
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}


@functools.cache
def write(name, config=PLAIN):
    """What is written on the mesh of that name, greedily, by beams and by chance."""
    shape, rules = MESHES[name]
    ways = Decoding(), Decoding(beams=3), Decoding(temperature=1.0, top_k=5, top_p=0.9)
    values = np.random.default_rng(2).normal(size=(8, 3, WIDTH)).astype(np.float32)
    with jax.set_mesh(shape.build()):
        settings = Settings(width=WIDTH, rules=rules)
        writer = draw(lambda rngs: config.build(FEATURES, settings, rngs))
        tokens = Tokens(*jax.device_put((values, np.ones((8, 3), bool)), rules.spec("batch")))
        fused = Fused(tokens, tokens.values[:, 0], {})
        key = jax.random.key(3)
        run = jax.jit(lambda writer, fused: [writer.sample(fused, key, how) for how in ways])
        return [np.asarray(said) for said in run(writer, fused)]


@pytest.mark.parametrize(
    ("name", "config"), [("data", PLAIN), ("fsdp_tensor", PLAIN), ("fsdp_tensor", LLAMA)], ids=["data", "both", "llama"]
)
def test_every_mesh_writes_the_same(name, config):
    for said, expected in zip(write(name, config), write("one", config), strict=True):
        np.testing.assert_array_equal(said, expected)


@functools.cache
def loss_and_gradients(name):
    """The loss on the mesh of that name of the decoder with options, and its gradients by parameter."""
    shape, rules = MESHES[name]
    with jax.set_mesh(shape.build()):
        writer = draw(lambda rngs: LLAMA.build(FEATURES, Settings(width=WIDTH, rules=rules), rngs))
        values = np.random.default_rng(2).normal(size=(8, 3, WIDTH)).astype(np.float32)
        tokens = Tokens(*jax.device_put((values, np.ones((8, 3), bool)), rules.spec("batch")))
        fused, texts = Fused(tokens, tokens.values[:, 0], {}), put(make_batch(), rules)
        run = jax.jit(jax.value_and_grad(lambda writer, fused: writer.loss(fused, texts, None, None)[0].value()))
        loss, gradients = run(writer, fused)
        return float(loss), {name: np.asarray(leaf) for name, leaf in named_leaves(gradients)}


def test_every_mesh_learns_the_same():
    (loss, gradients), (other, others) = loss_and_gradients("one"), loss_and_gradients("fsdp_tensor")
    assert other == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert gradient.any()
        np.testing.assert_allclose(others[name], gradient, rtol=1e-3, atol=1e-5, err_msg=name)


def test_every_token_of_the_context_has_its_share_in_an_explanation(llama, batch, fused):
    given = batch.values["text"], batch.mask["text"]
    ids, explained = jax.device_put(given, fused.tokens.mask.sharding)
    shares = np.asarray(jax.jit(llama.token_weights)(ids, explained, fused.tokens))
    np.testing.assert_allclose(shares.sum(1), np.asarray(fused.tokens.mask).any(1), atol=1e-5)
    np.testing.assert_array_equal(shares > 0, fused.tokens.mask)


@pytest.mark.parametrize("beams", [1, 200])
def test_a_wide_enough_beam_finds_the_best_of_all(writer, fused, beams):
    """Every sequence of up to three tokens of four, scored by the decoder itself."""
    small = Text(3, 5)
    writer = draw(
        lambda rngs: TextDecoder(target="text", depth=1, heads=2).build({"text": small}, SETTINGS, rngs), scale=1.0
    )
    how = Decoding(beams=beams, length_penalty=0.6)
    said = np.asarray(jax.jit(lambda fused: writer.sample(fused, None, how))(fused))
    candidates = [(*body, 1)[:3] for length in range(4) for body in itertools.product((2, 3, 4), repeat=length)]
    rows = np.array([[*c, *[0] * (3 - len(c))] for c in candidates])
    for example in range(SIZE):
        alone = (np.asarray(x)[[example] * len(rows)] for x in (fused.tokens.values, fused.tokens.mask))
        logits = expected_logits(writer, rows, *alone)
        logits[..., 0] = -np.inf
        likely = np.log(reference.softmax(logits))
        scores = [
            sum(likely[place, n, token] for n, token in enumerate(c)) / ((5 + len(c)) / 6) ** 0.6
            for place, c in enumerate(candidates)
        ]
        best = rows[int(np.argmax(scores))].tolist()
        if beams > 1:
            assert said[example].tolist() == best
        else:
            assert scores[rows.tolist().index(said[example].tolist())] <= max(scores)


def test_a_wide_enough_beam_finds_the_best_with_rotary_positions_and_grouped_queries(fused):
    """Every sequence of two tokens, scored by whole passes."""
    config = chz.replace(LLAMA, decoding=Decoding(beams=300))
    writer = draw(lambda rngs: config.build({"text": Text(2, 16)}, SETTINGS, rngs))
    said = np.asarray(jax.jit(lambda fused: writer.predict(fused, None)["ids"])(fused))
    rows = [(1, 0), *itertools.product(range(2, 16), range(1, 16))]
    score = jax.jit(lambda ids, fused: writer(ids, fused, None))
    for example in range(SIZE):
        alone = jax.tree.map(lambda leaf, at=example: jnp.stack([leaf[at]] * len(rows)), fused)
        logits = np.array(score(jnp.array(rows), alone), np.float64)
        logits[..., 0] = -np.inf
        likely = np.log(reference.softmax(logits))
        lengths = [1 + (row[0] != 1) for row in rows]
        scores = [
            sum(likely[n, place, row[place]] for place in range(length)) / ((5 + length) / 6) ** 0.6
            for n, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]
        assert tuple(said[example]) == rows[int(np.argmax(scores))]


def test_a_gated_decoder_starts_as_if_there_were_no_context(batch, fused):
    writer = LLAMA.build(FEATURES, SETTINGS, nnx.Rngs(0))
    texts = put(batch, RULES)
    other = dataclasses.replace(fused, tokens=dataclasses.replace(fused.tokens, values=-3 * fused.tokens.values))
    loss = jax.jit(jax.value_and_grad(lambda writer, fused: writer.loss(fused, texts, None, None)[0].value()))
    (first, slopes), (second, _) = loss(writer, fused), loss(writer, other)
    assert first == second
    assert np.asarray(slopes.decoder.stack.blocks.gate[...]).all()  # and learns to look


def test_the_settings_of_a_decoder():
    with pytest.raises(ValueError, match=r"block.post_norm and block.layer_scale are for encoders"):
        TextDecoder(target="text", block=BlockOptions(post_norm=True))
    with pytest.raises(ValueError, match=r"block.post_norm and block.layer_scale are for encoders"):
        TextDecoder(target="text", block=BlockOptions(layer_scale=0.1))
    for options, message in [
        ({"heads": 3}, "TextDecoder.heads=3 does not divide model.width=16"),
        ({"heads": 3, "width": 32}, "TextDecoder.heads=3 does not divide TextDecoder.width=32"),
        ({"heads": 4, "width": 12, "block": BlockOptions(rope=10.0)}, "rotary positions need an even width / heads"),
        ({"block": BlockOptions(kv_heads=3)}, "kv_heads=3 does not divide heads=4"),
    ]:
        with pytest.raises(UserError, match=message):
            TextDecoder(target="text", **options).build(FEATURES, SETTINGS, nnx.Rngs(0))


def test_narrowing_against_sorting_by_hand():
    logits = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    kept = np.asarray(filter_logits(jnp.asarray(logits), 4, None)) > -1e8
    assert (kept.sum(1) == 4).all()
    kept = np.asarray(filter_logits(jnp.asarray(logits), None, 0.7)) > -1e8
    for row, keep in zip(logits.astype(np.float64), kept, strict=True):
        order = np.argsort(-row)
        total = np.cumsum(reference.softmax(row)[order])
        assert set(np.flatnonzero(keep)) == set(order[: int(np.argmax(total >= 0.7)) + 1])


def test_draws_have_the_frequencies_of_the_distribution():
    logits = jnp.log(jnp.array([1e-9, 0.1, 0.2, 0.3, 0.4]))
    count = 4000

    def step(last, place, cache):
        return jnp.broadcast_to(logits, (count, 5)), cache

    how = Decoding(temperature=0.5)
    key = jax.random.key(0)
    said = np.asarray(jax.jit(lambda: decode(step, (), count, 1, key, how, RULES))())[:, 0]
    squared = np.array([0.1, 0.2, 0.3, 0.4]) ** 2
    np.testing.assert_allclose(np.bincount(said, minlength=5)[1:] / count, squared / squared.sum(), atol=0.03)
    first, second = np.asarray(jax.jit(lambda: decode(step, (), count, 2, key, how, RULES))()).T
    assert 0.2 < (first == second)[first != END].mean() < 0.6  # each place draws for itself
    again = np.asarray(jax.jit(lambda: decode(step, (), count, 1, key, how, RULES))())[:, 0]
    np.testing.assert_array_equal(said, again)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "must not be negative"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "must lie in"),
        ({"beams": 0}, "beams=0 must lie between 1 and 1024"),
        ({"beams": 2, "temperature": 1.0}, "beam search does not sample"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**wrong)
