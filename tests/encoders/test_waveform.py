"""The transformer over samples: what is masked or absent, meshes, and what cannot be built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import WaveformTransformer
from mmjax.errors import UserError
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Spectrogram, Waveform

SETTINGS = Settings(width=16, rules=PRESETS["fsdp_tensor"])
# A token is made of 30 samples, one begins every 20.
SMALL = {"channels": 8, "kernels": (10, 3, 2), "strides": (5, 2, 2), "position_kernel": 8, "position_groups": 4}
SMALL |= {"depth": 1, "heads": 2}
# Samples of whole tokens, and some more, of one token, of less than one, none as in an absent recording, and others.
LENGTHS = np.array([150, 129, 30, 3, 0, 100, 49, 50])
TOKENS = [7, 5, 1, 1, 0, 4, 1, 2]


def batch(samples, beyond):
    """Recordings in rows of so many samples, with `beyond` where there is nothing."""
    values = np.random.default_rng(0).normal(size=(len(LENGTHS), 150)).astype(np.float32)
    mask = np.arange(samples) < LENGTHS[:, None]
    return np.where(mask, np.pad(values, ((0, 0), (0, samples - 150))), np.float32(beyond)), mask


def encode(config, values, mask):
    """The tokens' values, mask and times, and the gradients of a sum over the real ones."""

    def loss(encoder, values, mask):
        tokens, _ = encoder(values, mask, None)
        weight = jnp.sin(jnp.arange(7 * 16)).reshape(7, 16)
        found = tokens.values, tokens.mask, tokens.time
        return (jnp.where(tokens.mask[..., None], tokens.values, 0)[:, :7] * weight).sum(), found

    encoder = jax.jit(lambda: config.build(Waveform(values.shape[1], 1000), SETTINGS, nnx.Rngs(0)))()
    grads, found = jax.jit(jax.grad(loss, has_aux=True))(encoder, values, mask)
    return jax.device_get((*found, jax.tree.leaves(grads)))


@pytest.mark.parametrize("conv_norm", [False, True], ids=["first", "all"])
def test_what_is_not_there_changes_nothing(conv_norm):
    """Whatever lies beyond the end of a recording, and however much of it."""
    config = WaveformTransformer(**SMALL, conv_norm=conv_norm)
    values, real, time, grads = encode(config, *batch(150, np.nan))
    assert real.sum(1).tolist() == TOKENS
    np.testing.assert_allclose(time[0], 0.015 + 0.02 * np.arange(7), rtol=1e-6)
    more, mask, _, more_grads = encode(config, *batch(203, 1e9))
    np.testing.assert_array_equal(mask, np.pad(real, ((0, 0), (0, mask.shape[1] - 7))))
    np.testing.assert_allclose(more[mask], values[real], atol=2e-5)
    for one, other in zip(grads, more_grads, strict=True):
        assert np.isfinite(one).all()
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=2e-4)


def test_a_mesh_changes_nothing():
    """One axis splits nothing of the batch, beside which XLA has a wrong gradient of a grouped convolution."""
    config, given = WaveformTransformer(**SMALL), batch(150, 0)
    values, real, _, grads = encode(config, *given)
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()):
        found, _, _, found_grads = encode(config, *jax.device_put(given, SETTINGS.rules.spec("batch")))
    np.testing.assert_allclose(found[real], values[real], atol=2e-5)
    for one, other in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4, rtol=2e-4)


def test_the_default_tokens_are_of_25_milliseconds():
    assert WaveformTransformer().window == 400


@pytest.mark.parametrize(
    ("config", "feature", "says"),
    [
        ({}, Spectrogram(8, 4, 0.01), "WaveformTransformer encodes Waveform, not Spectrogram"),
        ({"heads": 3}, Waveform(800, 8000), "WaveformTransformer.heads=3 does not divide model.width=16"),
        ({"position_groups": 3}, Waveform(800, 8000), "position_groups=3 does not divide model.width=16"),
        ({}, Waveform(399, 8000), "makes a token of 400 samples, and its input has 399"),
    ],
)
def test_what_cannot_be_built(config, feature, says):
    with pytest.raises(UserError) as error:
        WaveformTransformer(**config).build(feature, SETTINGS, nnx.Rngs(0))
    assert says in str(error.value)


@pytest.mark.parametrize(
    "config", [{"kernels": (3,)}, {"kernels": (), "strides": ()}, {"channels": 0}, {"kernels": (0,), "strides": (1,)}]
)
def test_settings_that_make_no_sense(config):
    with pytest.raises(ValueError, match="must"):
        WaveformTransformer(**config)
