"""Encoders against plain NumPy in float64, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import TABLE, AudioTransformer, ConvNet, FTTransformer, Recurrent, TextTransformer, ViT
from mmjax.errors import UserError
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Image, Spectrogram, Text, Vector
from tests import reference
from tests.reference import draw, wide
from tests.small import FEATURES, make_batch

WIDTH = 16
RULES = PRESETS["data"]
SETTINGS = Settings(width=WIDTH, rules=RULES)
BATCH = make_batch(size=2)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def split(array):
    return None if array is None else jax.device_put(array, RULES.spec("batch"))


def build(config, feature, scale=0.2):
    return draw(lambda rngs: config.build(feature, SETTINGS, rngs), scale=scale)


def run(encoder, values, mask=None):
    """Tokens, compiled once per encoder and shape."""
    return jax.jit(lambda *given: encoder(*given, None)[0])(split(values), split(mask))


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def transform(encoder, x, mask=None):
    for block in reference.layers(encoder.stack):
        x = reference.block(block, x, mask)
    return reference.norm(encoder.norm, x)


def test_vit():
    """Patch (r, c) of a picture is token 2 r + c, with the position of row r and column c."""
    encoder = build(ViT(patch=4, depth=2, heads=2), FEATURES["image"])
    image = BATCH.values["image"]
    patches = [image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].reshape(2, -1) for r in range(2) for c in range(2)]
    x = reference.linear(encoder.embed, np.stack(patches, 1).astype(np.float64) - 0.5)
    x = x + np.stack([wide(encoder.position)[r, c] for r in range(2) for c in range(2)])
    tokens = run(encoder, image)
    close(tokens.values, transform(encoder, x))
    assert np.asarray(tokens.mask).all()
    assert tokens.time is None


def test_text_transformer():
    encoder = build(TextTransformer(depth=2, heads=2), FEATURES["text"])
    ids, mask = BATCH.values["text"], BATCH.mask["text"]
    tokens = run(encoder, ids, mask)
    expected = transform(encoder, wide(encoder.embed.table)[ids] + wide(encoder.position), mask)
    close(np.asarray(tokens.values)[mask], expected[mask])
    np.testing.assert_array_equal(tokens.mask, mask)


def test_ft_transformer():
    """Each number is a token: the number times its own weight, plus its own bias."""
    feature = Vector(3, 2)
    encoder = build(FTTransformer(depth=2, heads=2), feature)
    values = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    mask = np.asarray([[True, True], [True, False]])
    tokens = run(encoder, values, mask)
    x = values[..., None] * wide(encoder.weight) + wide(encoder.bias)
    real = np.repeat(mask, 3, axis=1)
    expected = transform(encoder, x.reshape(2, 6, WIDTH), real)
    np.testing.assert_array_equal(tokens.mask, real)
    close(np.asarray(tokens.values)[real], expected[real])


def test_spectrogram_fills_up_to_whole_tokens():
    """Ten frames, four to a token: the third token stands for two of them, and is real if either is."""
    encoder = build(AudioTransformer(convolutions=2, depth=2, heads=2), FEATURES["speech"])
    frames = BATCH.values["speech"]
    mask = np.arange(10) < np.asarray([[9], [4]])
    real = np.asarray([[True, True, True], [True, False, False]])
    halved = np.asarray([[True] * 5 + [False], [True] * 2 + [False] * 4])
    x = np.pad(frames * mask[..., None], ((0, 0), (0, 2), (0, 0)))
    for convolution, there in zip(encoder.convolutions, (halved, real), strict=True):
        kernel = wide(convolution.kernel)
        padded = np.pad(x, ((0, 0), (2, 2), (0, 0)))
        seen = np.stack([padded[:, 2 * place : 2 * place + 5] for place in range(x.shape[1] // 2)], 1)
        x = reference.gelu(np.tensordot(seen, kernel, 2) + wide(convolution.bias)) * there[..., None]
    expected = transform(encoder, x + wide(encoder.position), real)
    tokens = run(encoder, frames, mask)
    np.testing.assert_array_equal(tokens.mask, real)
    close(np.asarray(tokens.values)[real], expected[real])
    close(tokens.time, np.broadcast_to([0.02, 0.06, 0.10], (2, 3)))


def loop(layer, x, mask):
    """One direction of a recurrent layer, step by step; the state stands still where the mask is false."""
    gates = reference.linear(layer.read, x)
    hidden = np.zeros((len(x), gates.shape[-1]))
    memory, outputs = hidden, np.zeros((*x.shape[:2], gates.shape[-1]))
    for step in reversed(range(x.shape[1])) if layer.reverse else range(x.shape[1]):
        now, past = gates[:, step], reference.linear(layer.cell.recur, hidden)
        if now.shape[1] == 3:
            reset, update = reference.sigmoid(now[:, 0] + past[:, 0]), reference.sigmoid(now[:, 1] + past[:, 1])
            candidate = np.tanh(now[:, 2] + reset * past[:, 2])
            following, kept = (1 - update) * candidate + update * hidden, memory
        else:
            write, forget, out = (reference.sigmoid(now[:, k] + past[:, k] + (k == 1)) for k in range(3))
            kept = forget * memory + write * np.tanh(now[:, 3] + past[:, 3])
            following = out * np.tanh(kept)
        real = mask[:, step, None]
        hidden, memory = np.where(real, following, hidden), np.where(real, kept, memory)
        outputs[:, step] = hidden
    return outputs


def recur(encoder, x, mask):
    for index, (forward, backward, norm) in enumerate(
        zip(encoder.forward, encoder.backward, encoder.norms, strict=True)
    ):
        both = reference.norm(norm, np.concatenate([loop(forward, x, mask), loop(backward, x, mask)], -1))
        x = both if index == 0 else x + both
    return reference.linear(encoder.project, x)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrent_over_text(cell):
    encoder = build(Recurrent(cell=cell, depth=2), FEATURES["text"], 0.4)
    assert [layer.reverse for layer in encoder.backward] == [True, True]
    ids, mask = BATCH.values["text"], np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    close(run(encoder, ids, mask).values, recur(encoder, wide(encoder.embed.table)[ids], mask))


def test_recurrent_over_frames():
    """Three frames a step; the last step has the tenth and two of zeros."""
    encoder = build(Recurrent(patch=3), FEATURES["speech"], 0.4)
    frames, mask = BATCH.values["speech"], np.arange(10) < np.asarray([[10], [4]])
    real = np.asarray([[True] * 4, [True, True, False, False]])
    patches = np.pad(frames * mask[..., None], ((0, 0), (0, 2), (0, 0))).reshape(2, 4, 12)
    tokens = run(encoder, frames, mask)
    close(tokens.values, recur(encoder, reference.linear(encoder.embed, patches), real))
    np.testing.assert_array_equal(tokens.mask, real)
    close(tokens.time, np.broadcast_to([0.015, 0.045, 0.075, 0.105], (2, 4)))


def convolve(encoder, x):
    for shrink, stage in zip(encoder.trunk.reduce, encoder.trunk.stages, strict=True):
        x = reference.convolve(x, wide(shrink.kernel), shrink.stride[0]) + wide(shrink.bias)
        for block in reference.layers(stage):
            kernel = wide(block.spatial.kernel)
            full = np.einsum("hwc,cd->hwcd", kernel, np.eye(x.shape[-1]))
            y = reference.norm(block.norm, reference.convolve(x, full, 1) + wide(block.spatial.bias))
            x = x + reference.mlp(block, y) * wide(block.gain)
    return reference.norm(encoder.trunk.norm, x)


def test_convnet_over_pictures():
    encoder = build(ConvNet(stem=2, widths=(4, 8), depths=(2, 1), kernel=3), FEATURES["image"])
    tokens = run(encoder, BATCH.values["image"])
    assert tokens.values.shape == (2, 4, WIDTH)
    grid = convolve(encoder, BATCH.values["image"] - 0.5)
    close(tokens.values, reference.linear(encoder.project, grid.reshape(2, 4, 8)))
    assert np.asarray(tokens.mask).all()


@pytest.mark.parametrize("stem", [2, 4])
def test_convnet_over_spectra(stem):
    """Ten frames of four bands: every token stands for as many whole frames, the last one's filled up with zeros."""
    encoder = build(ConvNet(stem=stem, widths=(4, 8), kernel=3), FEATURES["speech"])
    frames, mask = BATCH.values["speech"], np.arange(10) < np.asarray([[9], [2]])
    stride = 2 * stem
    filled = np.pad(frames * mask[..., None], ((0, 0), (0, -10 % stride), (0, 0)))
    tokens = run(encoder, frames, mask)
    rows = filled.shape[1] // stride
    grid = convolve(encoder, filled[..., None])
    close(tokens.values, reference.linear(encoder.project, grid.reshape(2, rows, -1)))
    np.testing.assert_array_equal(tokens.mask, [[True] * rows, [True] + [False] * (rows - 1)])
    close(tokens.time[0], [(row + 0.5) * stride * 0.01 for row in range(rows)])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TextTransformer(depth=1, heads=2), "text"),
        (Recurrent(), "text"),
        (Recurrent(), "song"),
        (ConvNet(stem=2, widths=(4,), depths=(1,), kernel=3), "song"),
        (AudioTransformer(convolutions=1, depth=1, heads=2), "song"),
    ],
)
def test_masked_places_do_not_reach_real_ones(config, name):
    encoder = build(config, FEATURES[name])
    values = BATCH.values[name]
    mask = np.arange(values.shape[1]) < np.asarray([[2], [3]])
    other = make_batch(seed=1, size=2).values[name]
    there = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
    compiled = jax.jit(lambda *given: encoder(*given, None)[0])
    first, second = (compiled(split(v), split(mask)) for v in (values, np.where(there, values, other)))
    np.testing.assert_array_equal(first.mask, second.mask)
    real = np.asarray(first.mask)
    assert real.any(1).all()
    assert not real.all()
    np.testing.assert_array_equal(np.asarray(first.values)[real], np.asarray(second.values)[real])


def test_the_table_has_every_encoder():
    audio = {"AudioTransformer", "WaveformTransformer", "Recurrent"}
    assert set(TABLE) == {"ViT", "ConvNet", "TextTransformer", "FTTransformer"} | audio


@pytest.mark.parametrize(
    ("config", "feature", "says"),
    [
        (ViT(), Text(4, 8), "ViT encodes Image or Patches, not Text"),
        (ConvNet(), Text(4, 8), "ConvNet encodes Image or Spectrogram, not Text"),
        (TextTransformer(), Image(8, 8, 1), "TextTransformer encodes Text, not Image"),
        (AudioTransformer(), Image(8, 8, 1), "AudioTransformer encodes Spectrogram, not Image"),
        (Recurrent(), Image(8, 8, 1), "Recurrent encodes Text or Spectrogram, not Image"),
        (ViT(patch=3), Image(8, 8, 1), "ViT.patch=3 does not divide pictures of 8 x 8"),
        (ViT(heads=3), Image(8, 8, 1), "ViT.heads=3 does not divide model.width=16"),
        (AudioTransformer(heads=0), Spectrogram(8, 4, 0.01), "AudioTransformer.heads"),
        (TextTransformer(heads=5), Text(4, 8), "TextTransformer.heads"),
    ],
)
def test_what_cannot_be_built(config, feature, says):
    with pytest.raises(UserError) as error:
        config.build(feature, SETTINGS, nnx.Rngs(0))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_recurrent_needs_an_even_width():
    with pytest.raises(UserError, match="even"):
        Recurrent().build(Text(4, 8), Settings(width=15, rules=RULES), nnx.Rngs(0))


def test_convnet_stages_have_widths_and_depths():
    with pytest.raises(ValueError, match="one entry a stage"):
        ConvNet(widths=(8, 16), depths=(1,))


def test_bfloat16_tokens():
    settings = Settings(width=WIDTH, rules=RULES, dtype=jnp.dtype("bfloat16"))
    encoder = draw(lambda rngs: TextTransformer(depth=1, heads=2).build(FEATURES["text"], settings, rngs))
    tokens = run(encoder, BATCH.values["text"], BATCH.mask["text"])
    assert tokens.values.dtype == jnp.bfloat16
