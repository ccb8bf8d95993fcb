"""Speech from text: the loss by SciPy's densities, the flow, what is absent, durations, a toy that must be learned."""

import dataclasses

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from mmjax.encoders import AudioTransformer, TextTransformer
from mmjax.errors import UserError
from mmjax.fusion import SingleStream
from mmjax.generators import SpeechVae
from mmjax.generators.gaussian import Gaussian
from mmjax.generators.speech import log_density
from mmjax.layers.settings import Settings
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Fused, Spectrogram, Text, Tokens
from tests.layers.test_alignment import every
from tests.reference import draw, slopes
from tests.small import FEATURES, make_batch, put

WIDTH, SIZE = 16, 8
RULES = PRESETS["data"]
CONFIG = SpeechVae(
    target="speech",
    text="text",
    latent=4,
    depth=1,
    text_depth=1,
    couplings=2,
    kernel=3,
    beta=0.5,
    free_bits=0.02,
    warmup=10,
)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def batch():
    """Eight examples; the third lacks the recording, the fourth the text."""
    batch = make_batch(size=SIZE)
    batch.present["speech"][2] = batch.present["text"][3] = False
    batch.values["speech"][2] = np.nan
    return batch


def make_fused(batch, rules=RULES):
    """Tokens of the texts as an encoder leaves them, and summaries."""
    rng = np.random.default_rng(1)
    mask = batch.mask["text"] & batch.present["text"][:, None]
    values, pooled = (rng.normal(size=(SIZE, *shape, WIDTH)).astype(np.float32) for shape in ((5,), ()))
    values, mask, pooled = jax.device_put((values, mask, pooled), rules.spec("batch"))
    return Fused(Tokens(values, mask), pooled, {"text": Tokens(values, mask)})


@pytest.fixture(scope="module")
def fused(batch):
    return make_fused(batch)


def split(array):
    """A float array, or a mask, with its batch where the batch lies."""
    array = np.asarray(array)
    return jax.device_put(array if array.dtype == bool else array.astype(np.float32), RULES.spec("batch"))


def build(config=CONFIG, rules=RULES, dtype="float32"):
    settings = Settings(width=WIDTH, rules=rules, dtype=jnp.dtype(dtype))
    return draw(lambda rngs: config.build(FEATURES, settings, rngs))


@pytest.fixture(scope="module")
def speaker():
    return build()


def run(speaker, fused, batch, step=None, key=None, rules=RULES):
    compute = jax.jit(lambda speaker, fused, batch: speaker.loss(fused, batch, key, step))
    return compute(speaker, fused, put(batch, rules))


@pytest.mark.parametrize("step", [None, 3])
def test_the_loss_is_the_bound(speaker, batch, fused, step):
    """Of the networks' outputs as they are, by SciPy's densities, with the best of all alignments."""
    loss, metrics = run(speaker, fused, batch, None if step is None else jnp.int32(step))
    frames = batch.mask["speech"] & (batch.present["speech"] & batch.present["text"])[:, None]
    there = split(frames)
    x = np.where(frames[..., None], batch.values["speech"], 0)
    q, p = speaker.encode(split(x), there, fused), speaker.token_prior(fused)
    mean, deviations = np.asarray(q.mean, np.float64), np.asarray(q.deviation, np.float64)
    noise = np.asarray(jax.random.normal(jax.random.key(0), mean.shape), np.float64)
    z = mean + deviations * noise
    u = np.asarray(speaker.flow(split(z), there, fused), np.float64)
    said = np.asarray(speaker.decode(split(z), there, fused), np.float64)
    log_durations = np.asarray(speaker.log_durations(fused), np.float64)
    beta, deviation = 0.5 * (1 if step is None else 0.3), np.exp(float(speaker.deviation[...]))
    total = squares = numbers = 0.0
    divergences, counts, duration_errors, length_errors, sizes = [], [], [], [], []
    for example in np.flatnonzero(frames.any(1)):
        t, n = frames[example].sum(), batch.mask["text"][example].sum()
        p_mean, p_deviation = np.asarray(p.mean[example], np.float64), np.asarray(p.deviation[example], np.float64)
        scores = scipy.stats.norm.logpdf(u[example, :t, None], p_mean, p_deviation).sum(-1)
        way = np.array(max(every(t, min(n, t)), key=lambda way: scores[np.arange(t), way].sum()))
        # The entropy of q is known; of p there is one sample.
        kl = -scipy.stats.norm.entropy(0, deviations[example, :t])
        kl -= scipy.stats.norm.logpdf(u[example, :t], p_mean[way], p_deviation[way])
        density = scipy.stats.norm.logpdf(x[example, :t], said[example, :t], deviation)
        lasted = np.bincount(way)
        error = np.square(log_durations[example, : len(lasted)] - np.log(lasted)).mean()
        length = np.maximum(1, np.round(np.exp(log_durations[example, :n]))).sum()
        total += -density.sum() + beta * np.maximum(kl.sum(0), 0.02 * t).sum() + density.size * error
        squares += np.square(x[example, :t] - said[example, :t]).sum()
        numbers += density.size
        sizes.append(density.size)
        divergences.append(kl.sum())
        counts.append(t)
        duration_errors.append(error)
        length_errors.append(abs(length - t) / t)
    np.testing.assert_allclose(loss.value(), total / numbers, rtol=1e-4)
    np.testing.assert_allclose(metrics["squared_error"].value(), squares / numbers, rtol=1e-4)
    np.testing.assert_allclose(metrics["kl_per_frame"].value(), sum(divergences) / sum(counts), rtol=1e-4)
    np.testing.assert_allclose(metrics["duration_error"].value(), np.average(duration_errors, weights=sizes), rtol=1e-4)
    np.testing.assert_allclose(metrics["length_error"].value(), np.mean(length_errors), rtol=1e-4)
    assert len(sizes) == SIZE - 2
    assert float(speaker.weight(put(batch, RULES))) == numbers == float(loss.weight)


def test_the_recording_reaches_the_encoder(batch, fused):
    """Through the draw of z: the divergence weighs nothing here, and the slope is that of finite differences."""
    speaker, batch = build(chz.replace(CONFIG, beta=0.0)), put(batch, RULES)

    def loss(kernel):
        other = jax.tree.map(jnp.asarray, speaker)
        other.posterior.out.kernel[...] = kernel
        return other.loss(fused, batch, None, None)[0].value()

    np.testing.assert_allclose(*slopes(loss, speaker.posterior.out.kernel[...], 1e-3), rtol=0.03)


def test_densities_are_those_of_scipy():
    rng = np.random.default_rng(0)
    u, mean = (rng.normal(size=(2, count, 6)).astype(np.float32) for count in (7, 4))
    deviation = rng.uniform(0.3, 3, size=(2, 4, 6)).astype(np.float32)
    expected = scipy.stats.norm.logpdf(u[:, :, None], mean[:, None], deviation[:, None]).sum(-1)
    found = log_density(jnp.asarray(u), Gaussian(jnp.asarray(mean), jnp.asarray(deviation)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_flow_has_an_inverse_and_keeps_volume(speaker, batch, fused):
    frames = split(batch.mask["speech"])
    z = split(np.random.default_rng(2).normal(size=(SIZE, 10, 4)))
    u = speaker.flow(z, frames, fused)
    assert np.abs(u - z).max() > 0.1
    np.testing.assert_allclose(speaker.inverse_flow(u, frames, fused), z, atol=1e-5)
    # An example's u depends on its own z alone, so that one direction at a time serves all examples.
    push = jax.jit(jax.vmap(lambda way: jax.jvp(lambda z: speaker.flow(z, frames, fused), (z,), (way,))[1]))
    ways = jnp.broadcast_to(jnp.eye(40).reshape(40, 1, 10, 4), (40, SIZE, 10, 4))
    jacobian = np.asarray(push(jax.sharding.reshard(ways, RULES.spec(None, "batch"))), np.float64)
    _, log_volume = np.linalg.slogdet(jacobian.reshape(40, SIZE, 40).swapaxes(0, 1))
    np.testing.assert_allclose(log_volume, 0, atol=1e-4)


@pytest.mark.parametrize("name", ["speech", "text"])
def test_what_is_absent_changes_nothing(speaker, batch, fused, name):
    """Neither the loss nor any gradient, whether it is the recording or the text."""
    example = int(np.flatnonzero(~batch.present[name])[0])

    def gradients(value):
        values = batch.values["speech"].copy()
        values[example] = value
        placed = put(dataclasses.replace(batch, values=batch.values | {"speech": values}), RULES)
        return jax.jit(
            jax.value_and_grad(lambda speaker: speaker.loss(fused, placed, jax.random.key(0), None)[0].value()),
        )(speaker)

    for first, second in zip(*(jax.tree.leaves(gradients(value)) for value in (np.nan, 7.0)), strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


def test_durations_teach_only_themselves(speaker, fused):
    def total(values, pooled):
        tokens = Tokens(values, fused.tokens.mask)
        return speaker.log_durations(Fused(tokens, pooled, {"text": tokens})).sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(fused.tokens.values, fused.pooled):
        assert not np.asarray(gradient).any()


def test_predictions_last_as_long_as_their_tokens(speaker, batch, fused):
    predict = jax.jit(lambda fused, key: speaker.predict(fused, key))
    said, other = predict(fused, jax.random.key(0)), predict(fused, jax.random.key(1))
    durations = np.maximum(1, np.round(np.exp(np.asarray(speaker.log_durations(fused)))))
    lengths = np.where(fused.unimodal["text"].mask, durations, 0).sum(1)
    assert said["values"].shape == (SIZE, 10, 4)
    assert np.asarray(said["mask"]).tolist() == (np.arange(10) < lengths[:, None]).tolist()
    assert not np.asarray(said["values"])[~np.asarray(said["mask"])].any()
    assert np.abs(said["values"] - other["values"]).max() > 1e-4
    assert not np.asarray(said["mask"])[3].any()
    turned = predict(dataclasses.replace(fused, pooled=-fused.pooled), jax.random.key(0))
    assert np.abs(said["values"] - turned["values"]).max() > 1e-4


def test_a_prediction_without_noise_is_the_prior_mean(speaker, batch, fused):
    said = speaker.predict(fused, None)
    frames, values = np.asarray(said["mask"]), np.asarray(said["values"])
    durations = np.maximum(1, np.round(np.exp(np.asarray(speaker.log_durations(fused))))).astype(int)
    mean, u = np.asarray(speaker.token_prior(fused).mean), np.zeros((SIZE, 10, 4), np.float32)
    for example in range(SIZE):
        if frames[example].any():
            tokens = batch.mask["text"][example]
            spoken = np.repeat(mean[example][tokens], durations[example][tokens], axis=0)[:10]
            u[example, : len(spoken)] = spoken
    expected = speaker.decode(speaker.inverse_flow(split(u), said["mask"], fused), said["mask"], fused)
    np.testing.assert_allclose(values[frames], np.asarray(expected)[frames], atol=1e-5)


MESHES = {
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}


def speak(batch, dtype, shape, rules):
    """The loss, how large its gradient is, and what is said."""
    with jax.set_mesh(shape.build()):
        speaker, fused = build(rules=rules, dtype=dtype), make_fused(batch, rules)

        def compute(speaker, batch):
            loss = lambda speaker: speaker.loss(fused, batch, jax.random.key(1), None)[0].value()  # noqa: E731
            return jax.value_and_grad(loss)(speaker), speaker.predict(fused, None)

        (loss, gradients), said = jax.jit(compute)(speaker, put(batch, rules))
        return float(loss), np.asarray(optax.tree.norm(gradients)), jax.tree.map(np.asarray, said)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def alone(batch, request):
    """A dtype, and what one device says in it."""
    return request.param, speak(batch, request.param, MeshShape(data=1), PRESETS["data"])


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_says_the_same(batch, name, alone):
    dtype, expected = alone
    loss, norm, said = speak(batch, dtype, *MESHES[name])
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    np.testing.assert_allclose(loss, expected[0], rtol=tolerance)
    np.testing.assert_allclose(norm, expected[1], rtol=tolerance)
    np.testing.assert_array_equal(said["mask"], expected[2]["mask"])
    np.testing.assert_allclose(said["values"], expected[2]["values"], atol=tolerance)


def test_in_a_model_the_recording_is_not_read(batch):
    """What is said follows the text and the voice alone, though the speech has an encoder too."""
    encoders = {
        "text": TextTransformer(depth=1, heads=2),
        "speech": AudioTransformer(depth=1, heads=2),
        "song": AudioTransformer(depth=1, heads=2),
    }
    outputs = {"speech": CONFIG}
    config = Model(
        width=WIDTH, dtype="float32", encoders=encoders, fusion=SingleStream(depth=1, heads=2), outputs=outputs
    )
    model = draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))

    @jax.jit
    def compute(batch):
        return model.predict(batch)["speech"]["values"], model.loss(batch)[0]

    def changed(name):
        values = batch.values | {name: np.roll(np.nan_to_num(batch.values[name]), 1, axis=0)}
        return compute(put(dataclasses.replace(batch, values=values), RULES))

    said, loss = compute(put(batch, RULES))
    assert np.isfinite(loss)
    np.testing.assert_array_equal(changed("speech")[0], said)
    assert np.abs(changed("text")[0] - said).max() > 1e-3
    assert np.abs(changed("song")[0] - said).max() > 1e-3


def toy(count=32, seed=0):
    """Texts of four of six letters, each sounding in its own band for a number of frames that is its own."""
    rng = np.random.default_rng(seed)
    letters = np.stack([rng.permutation(6)[:4] for _ in range(count)])
    lasting = np.array([1, 2, 3, 4, 5, 6])[letters]
    speech, real = np.zeros((count, 20, 6), np.float32), np.zeros((count, 20), bool)
    for row in range(count):
        spoken = np.repeat(letters[row], lasting[row])
        speech[row, np.arange(len(spoken)), spoken] = 3
        real[row, : len(spoken)] = True
    speech += 0.1 * rng.normal(size=speech.shape)
    masks = {"text": np.ones((count, 4), bool), "speech": real}
    present = {name: np.ones(count, bool) for name in masks}
    return Batch({"text": letters.astype(np.int32), "speech": speech}, masks, present), lasting


def test_a_toy_language_is_learned():
    """Letters that are never seen alone are found in the frames, and new texts are spoken as they should be."""
    features = {"text": Text(4, 6), "speech": Spectrogram(20, 6, 0.01)}
    config = chz.replace(CONFIG, beta=1.0, free_bits=0.0, warmup=100, couplings=1)
    settings = Settings(width=24, rules=RULES)
    speaker = jax.jit(lambda key: config.build(features, settings, nnx.Rngs(key)))(jax.random.key(0))

    def fuse(batch):
        tokens = Tokens(jax.nn.one_hot(batch.values["text"], 24), batch.mask["text"])
        return Fused(tokens, jnp.zeros_like(tokens.values[:, 0]), {"text": tokens})

    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(speaker, state, batch, index):
        def loss(speaker):
            average, metrics = speaker.loss(fuse(batch), batch, jax.random.key(index), index)
            return average.value(), metrics["squared_error"].value()

        (_, error), gradients = jax.value_and_grad(loss, has_aux=True)(speaker)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(speaker, updates), state, error

    batch, state = put(toy()[0], RULES), optimizer.init(speaker)
    for index in range(400):
        speaker, state, error = step(speaker, state, batch, jnp.int32(index))
    assert float(error) < 0.1
    new, lasting = toy(seed=1)
    said = jax.jit(lambda batch: speaker.predict(fuse(batch), None))(put(new, RULES))
    lengths = np.asarray(said["mask"]).sum(1)
    assert np.abs(lengths - lasting.sum(1)).mean() < 1
    heard = np.asarray(said["values"]).argmax(-1)
    true = new.values["speech"].argmax(-1)
    both = np.asarray(said["mask"]) & new.mask["speech"]
    assert (heard == true)[both].mean() > 0.8


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"latent": 3}, ValueError, "latent=3 must be even"),
        ({"depth": 0}, ValueError, "depth=0 must be at least 1"),
        ({"beta": -1.0}, ValueError, "must not be negative"),
        ({"target": "text"}, UserError, "SpeechVae.target=text is not one of the possible features: speech, song"),
        ({"text": "speech"}, UserError, "SpeechVae.text=speech is not one of the possible features: text"),
    ],
)
def test_wrong_values(wrong, error, message):
    with pytest.raises(error, match=message):
        build(chz.replace(CONFIG, **wrong))
