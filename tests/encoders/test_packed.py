"""Encoders of packed sequences give what they give for the same sequences one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import AudioTransformer, Recurrent, TextTransformer, ViT
from mmjax.layers.packed import segment_positions, unpack, unpack_tokens
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Patches, Spectrogram, Text, Tokens
from tests.packing import pack

TEXT, SOUND = Text(length=12, vocabulary=50), Spectrogram(frames=22, bands=6, seconds=0.01)
PATCHES = Patches(length=12, side=2, channels=3)
ENCODERS = {
    "text": (TextTransformer(depth=2, heads=2), TEXT),
    "audio": (AudioTransformer(depth=1, heads=2), SOUND),
    "audio as whisper": (AudioTransformer(kernel=3, first_stride=1, depth=1, heads=2), SOUND),
    "gru of text": (Recurrent(depth=2), TEXT),
    "vit of patches": (ViT(patch=2, depth=2, heads=2), PATCHES),
    "lstm of frames": (Recurrent(cell="lstm", patch=3), SOUND),
}
SETTINGS = Settings(width=16, rules=PRESETS["data"], dtype=jnp.dtype("float32"), dropout=0.0, remat="none", unroll=True)
EXAMPLES, ROW = 16, 24


def padded(feature, absent=(3,)) -> Batch:
    """Sequences of random lengths, one of the longest and one of a single position."""
    rng = np.random.default_rng(1)
    longest = feature.shape[0]
    lengths = rng.integers(1, longest + 1, EXAMPLES)
    lengths[0], lengths[1] = longest, 1
    shape = (EXAMPLES, *feature.shape)
    text = isinstance(feature, Text)
    values = rng.integers(2, 50, shape).astype(np.int32) if text else rng.uniform(size=shape).astype(np.float32)
    mask = np.arange(longest) < lengths[:, None]
    present = ~np.isin(np.arange(EXAMPLES), absent)
    return Batch({"x": values}, {"x": mask}, {"x": present})


def build(name):
    config, feature = ENCODERS[name]
    return config.build(feature, SETTINGS, nnx.Rngs(0)), feature, config.packed_stride(feature)


def one_by_one(encoder, batch: Batch) -> Tokens:
    return encoder(batch.values["x"], batch.mask["x"] & batch.present["x"][:, None], None)[0]


def together(encoder, batch: Batch) -> Tokens:
    return unpack_tokens(encoder(batch.values["x"], batch.mask["x"], None)[0], batch.packed["x"], SETTINGS.rules)


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_equals_one_by_one(name):
    encoder, feature, stride = build(name)
    batch = jax.tree.map(jnp.asarray, padded(feature))
    packed = jax.tree.map(jnp.asarray, pack(batch, "x", ROW, 16, stride))

    def loss(encoder, run, batch):
        tokens = run(encoder, batch)
        weight = jnp.sin(jnp.arange(tokens.values.size)).reshape(tokens.values.shape)
        return (jnp.where(tokens.mask[..., None], tokens.values, 0) * weight).sum() / EXAMPLES, tokens

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (wanted_grads, wanted), (grads, got) = run(encoder, one_by_one, batch), run(encoder, together, packed)
    assert np.array_equal(got.mask, wanted.mask)
    real = np.asarray(wanted.mask)
    np.testing.assert_allclose(np.asarray(got.values)[real], np.asarray(wanted.values)[real], atol=1e-5)
    if wanted.time is not None:
        np.testing.assert_allclose(np.asarray(got.time)[real], np.asarray(wanted.time)[real], atol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["text", "audio"])
def test_parts_of_a_batch_are_packed_and_unpacked_on_their_own_devices(name):
    encoder, feature, stride = build(name)
    batch = padded(feature, absent=())
    packed = pack(batch, "x", ROW, 16, stride, parts=8)
    wanted = one_by_one(encoder, jax.tree.map(jnp.asarray, batch))
    with jax.set_mesh(MeshShape(data=4).build(jax.devices()[:4])):
        encoder = jax.jit(lambda: build(name)[0])()
        placed = jax.device_put(packed, SETTINGS.rules.spec("batch"))
        got = jax.jit(together)(encoder, placed)
        gather = jax.jit(lambda batch: unpack(batch.values["x"], batch.packed["x"], SETTINGS.rules))
        text = gather.lower(placed).compile().as_text()
    real = np.asarray(wanted.mask)
    np.testing.assert_allclose(np.asarray(got.values)[real], np.asarray(wanted.values)[real], atol=1e-5)
    assert not any(word in text for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))


def test_positions_begin_again_with_every_segment():
    segments = jnp.array([[1, 1, 2, 2, 2, 0, 0], [5, 3, 3, 0, 4, 4, 4]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 0, 1, 0, 0, 1, 2]]
