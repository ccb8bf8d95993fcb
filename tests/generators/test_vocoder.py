"""The vocoder: its loss by NumPy's Fourier transform, its layers, what is absent, and tones to be learned."""

import dataclasses

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
from flax import nnx

from mmjax.errors import UserError
from mmjax.generators import Gan, Vocoder
from mmjax.generators.adversary import Adversary, LeastSquares
from mmjax.generators.critics import PatchCritic
from mmjax.generators.phase_reconstruction import griffin_lim
from mmjax.generators.stft import FLOOR, spectral_distance, stft_magnitudes
from mmjax.generators.vocoder import upsample
from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Fused, Spectrogram, Tokens, Waveform
from tests.reference import draw, wide
from tests.slow import slow_but

SIZE, FRAMES, BANDS, SAMPLES = 8, 10, 4, 58
RULES = PRESETS["data"]
SETTINGS = Settings(width=8, rules=RULES)
FEATURES = {"speech": Spectrogram(FRAMES, BANDS, 0.006), "wave": Waveform(SAMPLES, 1000)}
DEFAULT_ADVERSARY = Adversary(
    loss=LeastSquares(),
    critic=WaveformCritic(periods=(2, 3), scales=(2,), widths=(4, 8)),
    weight=0.5,
    feature_matching=2.0,
    gradient_penalty=0.0,
    augment=False,
)
CONFIG = Vocoder(
    target="wave",
    mel="speech",
    channels=8,
    factors=(3, 2),
    kernels=(3, 5),
    dilations=(1, 2),
    windows=(16, 8),
    rounds=2,
    adversary=DEFAULT_ADVERSARY,
)


# What a vocoder is given beside the batch, and does not read.
NOTHING = Fused(Tokens(jnp.zeros((SIZE, 1, 8)), jnp.ones((SIZE, 1), bool)), jnp.zeros((SIZE, 8)), {})


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def batch():
    """Eight recordings of several lengths; the third has no spectrum, the fourth no samples."""
    rng = np.random.default_rng(0)
    samples = rng.integers(6, SAMPLES + 1, SIZE)
    values = {
        "speech": rng.normal(size=(SIZE, FRAMES, BANDS)).astype(np.float32),
        "wave": (0.1 * rng.normal(size=(SIZE, SAMPLES))).astype(np.float32),
    }
    mask = {
        "speech": np.arange(FRAMES) < -(-samples[:, None] // 6),
        "wave": np.arange(SAMPLES) < samples[:, None],
    }
    present = {name: np.ones(SIZE, bool) for name in values}
    present["speech"][2] = present["wave"][3] = False
    values["speech"][2] = values["wave"][3] = np.nan
    return Batch(values, mask, present)


def build(config=CONFIG, rules=RULES):
    settings = dataclasses.replace(SETTINGS, rules=rules)
    return draw(lambda rngs: config.build(FEATURES, settings, rngs))


@pytest.fixture(scope="module")
def vocoder():
    return build()


def put(tree, rules=RULES):
    return jax.device_put(tree, rules.spec("batch"))


def numpy_magnitudes(x, window):
    """Frame by frame, those that begin at multiples of a quarter window and touch the signal."""
    hop = window // 4
    starts = range(-(window - hop), -(-len(x) // hop) * hop, hop)
    padded = np.pad(x, (window, 2 * window))
    hann = scipy.signal.get_window("hann", window)
    power = [np.abs(np.fft.rfft(padded[window + start : 2 * window + start] * hann)) ** 2 for start in starts]
    return np.sqrt(np.maximum(power, FLOOR))


def distance(said, true, real, window):
    count = real.sum()
    if not count:
        return 0.0
    # What lies behind the real samples is zero, and frames there do not count.
    fake, wanted = (numpy_magnitudes(np.where(real, x, 0).astype(np.float64)[:count], window) for x in (said, true))
    convergence = np.linalg.norm(fake - wanted) / np.linalg.norm(wanted)
    filters = triangles(window // 8, window, 1000)
    bands = (np.log(x**2 @ filters + FLOOR) for x in (fake, wanted))
    return convergence + np.abs(np.log(fake) - np.log(wanted)).mean() + np.abs(np.subtract(*bands)).mean()


def triangles(count, window, rate):
    """Band by band and frequency by frequency: 1 at an edge even in mel, 0 at its neighbours."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), count + 2) / 2595) - 1)
    filters = np.zeros((window // 2 + 1, count))
    for band in range(count):
        for place in range(window // 2 + 1):
            filters[place, band] = np.interp(place * rate / window, edges[band : band + 3], [0, 1, 0])
    return filters


@pytest.mark.parametrize("window", [8, 16, 32])
def test_magnitudes(window):
    x = np.random.default_rng(1).normal(size=(2, SAMPLES)).astype(np.float32)
    found = jax.jit(lambda x: stft_magnitudes(x, window, rules=RULES))(put(x))
    for row, expected in zip(np.asarray(found), x.astype(np.float64), strict=True):
        np.testing.assert_allclose(row, numpy_magnitudes(expected, window), atol=1e-4)


def test_distances_of_ragged_signals(batch):
    rng = np.random.default_rng(2)
    said = (0.1 * rng.normal(size=(SIZE, SAMPLES))).astype(np.float32)
    true, real = np.nan_to_num(batch.values["wave"]), batch.mask["wave"].copy()
    real[5] = False
    run = jax.jit(lambda *arrays: spectral_distance(*arrays, 16, 1000, rules=RULES))
    found = run(*put((said, true, real)))
    expected = [distance(*each, 16) for each in zip(said, true, real, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(run(*put((true, true, real))), 0)


def test_the_loss(vocoder, batch):
    loss, metrics = jax.jit(lambda v, batch: v.loss(NOTHING, batch, None, None))(vocoder, put(batch))
    real = batch.mask["wave"] & (batch.present["wave"] & batch.present["speech"])[:, None]
    mask = batch.mask["speech"] & batch.present["speech"][:, None]
    said = np.asarray(vocoder.decode(put(np.nan_to_num(batch.values["speech"])), put(mask)))[:, :SAMPLES]
    total = 0.0
    for row in range(SIZE):
        apart = [distance(said[row], batch.values["wave"][row], real[row], window) for window in (16, 8)]
        total += np.mean(apart) * real[row].sum()
    assert real.any(1).sum() == SIZE - 2
    np.testing.assert_allclose(loss.value(), total / real.sum(), rtol=1e-4)
    assert float(loss.weight) == real.sum() == float(vocoder.weight(put(batch)))
    np.testing.assert_allclose(metrics["spectral_distance"].value(), loss.value(), rtol=1e-5)


def convolve(layer, x, dilation=1):
    """[T C] -> [T D] by NumPy's correlation, zeros around."""
    kernel = wide(layer.kernel)
    spread = np.zeros((dilation * (len(kernel) - 1) + 1, *kernel.shape[1:]))
    spread[::dilation] = kernel
    before = (len(spread) - 1) // 2
    padded = np.pad(x, ((before, len(spread) - 1 - before), (0, 0)))
    y = np.stack([np.tensordot(padded[place : place + len(spread)], spread, 2) for place in range(len(x))])
    return y + wide(layer.bias)


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


@pytest.mark.parametrize(("factors", "rounds"), [((3, 2), 2), ((3,), 2), ((3,), 0)], ids=str)
def test_the_generator_layer_by_layer(factors, rounds, vocoder, batch):
    """A place makes as many samples at last as its factors leave: 1 or 2."""
    config = chz.replace(CONFIG, factors=factors, rounds=rounds)
    vocoder = build(config) if config != CONFIG else vocoder
    mask = batch.mask["speech"]
    found = jax.jit(lambda mel, mask: vocoder.decode(mel, mask))(*put((batch.values["speech"], mask)))
    starts = np.zeros(found.shape)
    if rounds:
        mel = put(np.where((mask & batch.present["speech"][:, None])[..., None], batch.values["speech"], 0))
        starts = np.asarray(jax.jit(lambda mel, mask: vocoder.start(mel, mask))(mel, put(mask)), np.float64)
        assert starts.std() > 0.01
    for row in (0, 1, 4):
        x = convolve(vocoder.stem, np.where(mask[row, :, None], batch.values["speech"][row].astype(np.float64), 0))
        for level, (factor, widen, branches) in enumerate(zip(factors, vocoder.widen, vocoder.levels, strict=True)):
            x = convolve(widen, np.repeat(leaky(x), factor, axis=0))
            if rounds:
                x = x + convolve(vocoder.start.joins[level], starts[row].reshape(len(x), -1))
            parts = []
            for branch in branches:
                y = x
                for dilation, inner, outer in zip((1, 2), branch.inner, branch.outer, strict=True):
                    y = y + convolve(outer, leaky(convolve(inner, leaky(y), dilation)))
                parts.append(y)
            x = np.mean(parts, axis=0)
        expected = np.tanh(convolve(vocoder.out, leaky(x)).ravel() + starts[row])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_the_sound_to_start_from(vocoder, batch):
    """Its magnitudes are those of two convolutions, none behind the recording's end."""
    mask = batch.mask["speech"]
    mel = np.where((mask & batch.present["speech"][:, None])[..., None], batch.values["speech"], 0)
    found = jax.jit(lambda mel, mask: vocoder.start(mel, mask))(*put((mel, mask)))
    logs = np.stack([convolve(vocoder.start.outer, leaky(convolve(vocoder.start.inner, row))) for row in mel])
    stft_magnitudes = np.where(mask[..., None], np.exp(logs), 0).astype(np.float32)
    expected = jax.jit(lambda x: griffin_lim(x, 6, 2, rules=RULES))(put(stft_magnitudes))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_repeating():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(upsample(put(x), 5, RULES), np.repeat(x, 5, axis=1))


def play(vocoder, adversary, batch):
    """What the two players lose."""
    nothing = jnp.zeros((SIZE, 8))
    return adversary.losses(vocoder.generate(NOTHING, batch, None, None), nothing, None, None)[:2]


def build_adversary(rules=RULES):
    settings = dataclasses.replace(SETTINGS, rules=rules)
    return draw(lambda rngs: CONFIG.build_critic(FEATURES, settings, rngs))


def test_the_game(vocoder, batch):
    """Least squares over all networks alike and the distance of features over all layers alike, by hand."""
    adversary, placed = build_adversary(), put(batch)
    lost, critic_lost = jax.jit(play)(vocoder, adversary, placed)
    output = vocoder.generate(NOTHING, placed, None, None)
    real, weights = (np.asarray(x, np.float64) for x in (vocoder._real(placed), output.weights))
    assert not np.asarray(output.fake)[real == 0].any()
    true, fake = (adversary.critic(x, jnp.zeros((SIZE, 8))) for x in (output.true, output.fake))

    def mean(parts):
        return np.mean([np.asarray(part, np.float64).reshape(SIZE, -1).mean(1) for part in parts], axis=0)

    convinced = mean([(1 - np.asarray(score)) ** 2 for score in fake.scores])
    apart = mean([np.abs(np.asarray(a) - np.asarray(b)) for a, b in zip(true.features, fake.features, strict=True)])
    each = np.asarray(output.distance(output.fake)) + 0.5 * convinced + 2 * apart
    np.testing.assert_allclose(lost.value(), np.average(each, weights=weights), rtol=1e-4)
    told = [(1 - np.asarray(a)) ** 2 + np.asarray(b) ** 2 for a, b in zip(true.scores, fake.scores, strict=True)]
    np.testing.assert_allclose(critic_lost.value(), np.average(mean(told), weights=weights), rtol=1e-4)


@pytest.mark.parametrize("name", ["speech", "wave"])
def test_what_is_absent_changes_nothing(vocoder, batch, name):
    """Neither player's loss nor gradient."""
    example, players = int(np.flatnonzero(~batch.present[name])[0]), (vocoder, build_adversary())

    @jax.jit
    def compute(players, batch):
        return jax.value_and_grad(lambda players: sum(lost.value() for lost in play(*players, batch)))(players)

    def gradients(value):
        values = batch.values[name].copy()
        values[example] = value
        return jax.tree.leaves(compute(players, put(dataclasses.replace(batch, values=batch.values | {name: values}))))

    for first, second in zip(gradients(np.nan), gradients(7.0), strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


MESHES = {
    "data": (MeshShape(data=8), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}


def compute(batch, shape, rules):
    """The players' loss, and how large its gradient is."""
    with jax.set_mesh(shape.build()):
        placed = put(batch, rules)
        run = jax.value_and_grad(lambda players: sum(lost.value() for lost in play(*players, placed)))
        loss, gradients = jax.jit(run)((build(rules=rules), build_adversary(rules)))
        return float(loss), float(optax.tree.norm(gradients))


@pytest.fixture(scope="module")
def alone(batch):
    return compute(batch, MeshShape(data=1), PRESETS["data"])


@pytest.mark.parametrize("name", slow_but(MESHES, "fsdp_tensor"))
def test_every_mesh_computes_the_same(batch, name, alone):
    np.testing.assert_allclose(compute(batch, *MESHES[name]), alone, rtol=1e-4)


def test_tones_are_learned():
    """Each frame's band says which of two tones sounds; the generated sound has its power there.

    Frames that are all alike can only make what repeats with them, every six samples.
    """
    tones = np.arange(SIZE) % 2
    hertz = np.array([1000 / 6, 2000 / 6])[tones]
    time = np.arange(SAMPLES) / 1000
    wave = 0.3 * np.sin(2 * np.pi * hertz[:, None] * time)
    mel = np.repeat(np.eye(4)[tones][:, None], FRAMES, 1)
    ones = {"speech": np.ones((SIZE, FRAMES), bool), "wave": np.ones((SIZE, SAMPLES), bool)}
    batch = put(
        Batch(
            {"speech": mel.astype(np.float32), "wave": wave.astype(np.float32)},
            ones,
            {name: np.ones(SIZE, bool) for name in ones},
        )
    )
    config = chz.replace(CONFIG, channels=16, kernels=(3,), dilations=(1,), windows=(16, 32))
    vocoder = jax.jit(lambda key: config.build(FEATURES, SETTINGS, nnx.Rngs(key)))(jax.random.key(0))
    optimizer = optax.adam(4e-3)

    @jax.jit
    def step(vocoder, state):
        loss, gradients = jax.value_and_grad(lambda vocoder: vocoder.loss(NOTHING, batch, None, None)[0].value())(
            vocoder
        )
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(vocoder, updates), state, loss

    state, losses = optimizer.init(vocoder), []
    for _ in range(300):
        vocoder, state, loss = step(vocoder, state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    fake = np.asarray(vocoder.decode(batch.values["speech"], batch.mask["speech"]))[:, :SAMPLES]
    loudest = np.abs(np.fft.rfft(fake * np.hanning(SAMPLES), 1000)).argmax(1)
    # The loss's windows tell frequencies apart that are so many hertz from each other.
    np.testing.assert_allclose(loudest, hertz, atol=1000 / 32)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"factors": ()}, ValueError, "must be positive numbers"),
        ({"windows": (12,)}, ValueError, "must be multiples of 8"),
        ({"rounds": -1}, ValueError, "rounds=-1 must not be negative"),
        (
            {"adversary": chz.replace(DEFAULT_ADVERSARY, augment=True)},
            ValueError,
            "needs critic=WaveformCritic and augment=false",
        ),
        (
            {"adversary": chz.replace(DEFAULT_ADVERSARY, critic=PatchCritic())},
            ValueError,
            "needs critic=WaveformCritic",
        ),
        ({"channels": 2}, ValueError, "cannot be halved 2 times"),
        ({"factors": (3, 3)}, UserError, "upsample a frame of speech 9 times, but it has 6 samples; choose factors"),
        ({"mel": "wave"}, UserError, "Vocoder.mel=wave is not one of the possible features: speech"),
        ({"target": "speech"}, UserError, "Vocoder.target=speech is not one of the possible features: wave"),
    ],
)
def test_wrong_values(wrong, error, message):
    with pytest.raises(error, match=message):
        build(chz.replace(CONFIG, **wrong))


def test_spectra_must_be_as_long_as_their_waveforms():
    features = FEATURES | {"wave": Waveform(61, 1000)}
    with pytest.raises(UserError, match="wave is longer than speech"):
        CONFIG.build(features, SETTINGS, nnx.Rngs(0))


def test_pictures_are_not_judged_as_waveforms():
    with pytest.raises(ValueError, match="a WaveformCritic scores waveforms"):
        Gan(target="image", adversary=DEFAULT_ADVERSARY)
