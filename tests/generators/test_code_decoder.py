"""Codes written one by one: the two losses, that neither disturbs the other, and what is written."""

import dataclasses

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generators import CodeDecoder, Decoding, VqVae
from mmjax.generators.code_decoder import BEFORE
from mmjax.generators.codes import Codebook
from mmjax.layers.settings import Settings
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Fused, Tokens
from tests import reference
from tests.reference import draw
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 8
RULES = PRESETS["data"]
CONFIG = CodeDecoder(target="image", quantizer=Codebook(size=6, width=4), widths=(4, 8), depth=1, heads=2)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def build(config=CONFIG, rules=RULES):
    return draw(lambda rngs: config.build(FEATURES, Settings(width=WIDTH, rules=rules), rngs))


def features(rules=RULES):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(SIZE, 3, WIDTH)).astype(np.float32)
    values, mask, pooled = jax.device_put((values, values[..., 0] > -1, values[:, 0]), rules.spec("batch"))
    return Fused(Tokens(values, mask), pooled, {})


@pytest.fixture(scope="module")
def batch():
    """Eight examples of which the second has no picture."""
    batch = make_batch(size=SIZE)
    batch.present["image"][1] = False
    batch.values["image"][1] = np.nan
    return batch


def run(writer, fused, batch):
    return jax.jit(lambda *given: given[0].loss(*given[1:], None, None))(writer, fused, batch)


def test_the_loss_is_the_tokenizers_and_that_of_every_code(batch):
    writer, fused, placed = build(), features(), put(batch, RULES)
    loss, metrics = run(writer, fused, placed)
    plain = VqVae(target="image", quantizer=CONFIG.quantizer, widths=CONFIG.widths)
    tokenizer = build(plain)
    for (name, ours), (_, theirs) in zip(
        named_leaves(tokenizer), [leaf for leaf in named_leaves(writer) if "writer" not in leaf[0]], strict=True
    ):
        assert ours.shape == theirs.shape, name
    tokenizer = jax.tree.unflatten(
        jax.tree.structure(tokenizer), [leaf for name, leaf in named_leaves(writer) if "writer" not in name]
    )
    own, _ = run(tokenizer, fused, placed)
    ids = np.asarray(jax.jit(writer.encode)(placed)).reshape(SIZE, 4) + BEFORE
    logits = jax.jit(lambda *given: writer.writer(*given, None))(jnp.asarray(ids), fused)
    chances = reference.softmax(np.asarray(logits, np.float64))
    losses = -np.log(np.take_along_axis(chances, ids[..., None], 2))[..., 0].mean(1)
    there = batch.present["image"]
    np.testing.assert_allclose(metrics["codes"].value(), losses[there].mean(), rtol=1e-4)
    np.testing.assert_allclose(loss.value(), float(own.value()) + losses[there].mean(), rtol=1e-4)
    assert float(loss.weight) == float(writer.weight(placed)) == 64 * there.sum()


def test_writing_teaches_the_tokenizer_nothing_and_what_is_absent_nobody(batch):
    writer, fused = build(), features()

    @jax.jit
    def gradients(writer, batch):
        def losses(writer, part):
            loss, metrics = writer.loss(fused, batch, None, None)
            return metrics["codes"].value() if part else loss.value()

        return jax.grad(losses)(writer, 0), jax.grad(losses)(writer, 1)

    other = dataclasses.replace(batch, values=batch.values | {"image": np.nan_to_num(batch.values["image"], nan=3.0)})
    first, second = (gradients(writer, put(each, RULES)) for each in (batch, other))
    for (name, ours), (_, theirs) in zip(named_leaves(first), named_leaves(second), strict=True):
        assert np.isfinite(ours).all(), name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    for name, gradient in named_leaves(first[1]):
        assert name.startswith("writer/") or not np.any(gradient), name
    assert any(np.any(gradient) for name, gradient in named_leaves(first[1]) if name.startswith("writer/"))


def test_what_is_written_is_the_likeliest_code_of_every_place():
    writer, fused = build(), features()
    ids = np.asarray(jax.jit(lambda: writer.writer.sample(fused, None, Decoding()))())
    logits = jax.jit(lambda ids: writer.writer(ids, fused, None))(jnp.asarray(ids))
    likeliest = np.asarray(logits)[..., 1:].argmax(-1) + 1
    ended = np.cumsum(ids == 1, 1) - (ids == 1) > 0
    np.testing.assert_array_equal(ids[~ended], likeliest[~ended])
    made = jax.jit(lambda: writer.predict(fused, None)["values"])()
    codes = jnp.asarray(np.maximum(ids - BEFORE, 0).reshape(SIZE, 2, 2))
    np.testing.assert_allclose(made, jax.jit(writer.decode)(codes), atol=1e-5)
    assert made.shape == (SIZE, 8, 8, 1)
    draw_one = jax.jit(lambda key: writer.predict(fused, key)["values"])
    assert np.abs(draw_one(jax.random.key(0)) - draw_one(jax.random.key(1))).max() > 0


def test_every_mesh_writes_with_the_same_loss(batch):
    loss, _ = run(build(), features(), put(batch, RULES))
    rules = PRESETS["fsdp_tensor"]
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()):
        other, _ = run(build(rules=rules), features(rules), put(batch, rules))
        other = float(other.value())
    np.testing.assert_allclose(other, loss.value(), rtol=1e-5)


def test_spectra_are_written_too(batch):
    writer, fused = build(chz.replace(CONFIG, target="speech")), features()
    loss, _ = run(writer, fused, put(batch, RULES))
    assert np.isfinite(float(loss.value()))
    assert jax.eval_shape(lambda: writer.predict(fused, None))["values"].shape == (SIZE, 10, 4)
