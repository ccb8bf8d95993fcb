"""The text decoder with a latent: its bound by hand, draws that differ, what is absent, every mesh."""

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generators import Decoding, TextVae
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Fused, Tokens
from tests import reference
from tests.reference import draw, slopes, wide
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 8
CONFIG = TextVae(target="text", depth=1, heads=2, latent=3, beta=0.5, free_bits=0.2, warmup=10)
# As a language model is built, with a width of its own.
OTHER = chz.replace(
    CONFIG,
    heads=4,
    width=24,
    block=BlockOptions(norm="layer", bias=True, gated=True, activation="silu", kv_heads=2, rope=20.0),
    gated=True,
    tied=True,
)
MESHES = {"data": MeshShape(data=8), "fsdp_tensor": MeshShape(data=2, fsdp=2, tensor=2)}


def build(rules, config=CONFIG):
    return draw(lambda rngs: config.build(FEATURES, Settings(width=WIDTH, rules=rules), rngs))


def features(rules, seed=1):
    """Three fused tokens an example, some masked."""
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(SIZE, 3)) < 0.7
    values = rng.normal(size=(SIZE, 3, WIDTH)).astype(np.float32)
    values, mask, pooled = jax.device_put((values, mask, values[:, 0]), rules.spec("batch"))
    return Fused(Tokens(values, mask), pooled, {})


def make(spoil=0):
    """The second text is not there."""
    batch = make_batch(size=SIZE)
    batch.present["text"][1] = False
    batch.values["text"][1] = spoil
    return batch


def evaluate(rules, batch, step=None, config=CONFIG):
    writer, fused, batch = build(rules, config), features(rules), put(batch, rules)
    compute = jax.jit(lambda *given: given[0].loss(*given[1:], None, step))
    return writer, fused, *compute(writer, fused, batch)


@pytest.mark.parametrize("step", [None, 3])
def test_the_loss_is_the_bound(step):
    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=1).build()):
        batch = make()
        writer, fused, loss, metrics = evaluate(rules, batch, None if step is None else jnp.int32(step))
        ids, there = batch.values["text"], batch.mask["text"] & batch.present["text"][:, None]
        pooled = np.asarray(fused.pooled, np.float64)
        x = wide(writer.embed.table)[ids] + wide(writer.position)
        for block in reference.layers(writer.reader):
            x = reference.block(block, x, there)
        read = np.concatenate([reference.pool(writer.pool, x, there), pooled], -1)
        (mq, lq), (mp, lp) = (
            np.split(reference.linear(layer, given), 2, -1)
            for layer, given in ((writer.posterior, read), (writer.prior, pooled))
        )
        lq, lp = np.clip(lq, -6, 3), np.clip(lp, -6, 3)
        told = writer.condition(jnp.asarray(mq, jnp.float32), fused)
        assert told.tokens.values.shape == (SIZE, 4, WIDTH)
        np.testing.assert_allclose(told.tokens.values[:, 3], reference.linear(writer.say, mq), rtol=1e-4, atol=1e-5)
        logits = jax.jit(lambda *given: writer(*given, None))(jnp.asarray(ids), told)
        chances = reference.softmax(np.asarray(logits, np.float64))
        losses = -np.log(np.take_along_axis(chances, ids[..., None], 2))[..., 0]
        kl = lp - lq + (np.exp(2 * lq) + (mq - mp) ** 2) / (2 * np.exp(2 * lp)) - 0.5
        some = there.any(1)
        beta = 0.5 * (1 if step is None else 0.3)
        total = losses[there].sum() + beta * np.maximum(kl, 0.2)[some].sum()
        np.testing.assert_allclose(loss.value(), total / there.sum(), rtol=1e-4)
        np.testing.assert_allclose(metrics["tokens"].value(), losses[there].mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["kl"].value(), kl[some].sum(1).mean(), rtol=1e-4)


def test_the_text_reaches_the_encoder():
    """Through the draw of z: the divergence weighs nothing here, and the slope is that of finite differences."""
    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=1).build()):
        writer, fused, batch = build(rules, chz.replace(CONFIG, beta=0.0)), features(rules), put(make(), rules)

        def loss(kernel):
            other = jax.tree.map(jnp.asarray, writer)
            other.posterior.kernel[...] = kernel
            return other.loss(fused, batch, jax.random.key(0), None)[0].value()

        np.testing.assert_allclose(*slopes(loss, writer.posterior.kernel[...], 1e-2), rtol=0.03)


@pytest.mark.parametrize(
    ("name", "config"), [("data", CONFIG), ("fsdp_tensor", CONFIG), ("data", OTHER)], ids=["data", "both", "options"]
)
def test_every_mesh_says_the_same_and_what_is_absent_changes_nothing(name, config):
    with jax.set_mesh(MeshShape(data=1).build()):
        *_, loss, metrics = evaluate(PRESETS["data"], make(), config=config)
    with jax.set_mesh(MESHES[name].build()):
        *_, other, others = evaluate(PRESETS[name], make(spoil=9), config=config)
    np.testing.assert_allclose(other.value(), loss.value(), rtol=1e-5)
    for metric, average in metrics.items():
        np.testing.assert_allclose(others[metric].value(), average.value(), rtol=1e-5, atol=1e-7, err_msg=metric)


def test_one_input_has_many_texts():
    """Greedy texts of one input differ by what is drawn for z; without a key z is the prior's mean, and always that."""
    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=1).build()):
        writer, fused = build(rules), features(rules)
        write = jax.jit(lambda key: writer.sample(fused, key, Decoding()))
        plain = jax.jit(lambda: writer.sample(fused, None, Decoding()))
        texts = {np.asarray(write(jax.random.key(seed))).tobytes() for seed in range(8)}
        assert len(texts) > 1
        np.testing.assert_array_equal(write(jax.random.key(0)), write(jax.random.key(0)))
        np.testing.assert_array_equal(plain(), plain())


def test_wrong_values():
    with pytest.raises(ValueError, match="latent must be 1 or more"):
        chz.replace(CONFIG, latent=0)
