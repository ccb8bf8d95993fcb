"""The critics of waveforms: their networks in plain NumPy, and what each of them can and cannot see."""

import chz
import jax
import numpy as np
import pytest

from mmjax.generators.waveform_critics import WaveformCritic
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw, wide

SIZE, SAMPLES = 8, 50
RULES = PRESETS["data"]
CONFIG = WaveformCritic(periods=(2, 3), scales=(1, 2), widths=(4, 8))


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).normal(size=(SIZE, SAMPLES)).astype(np.float32)


def build(rules=RULES):
    return draw(lambda rngs: CONFIG.build(1, Settings(width=8, rules=rules), rngs))


def judge(wave, critic, rules=RULES):
    """Scores and features of each of the networks."""
    placed = jax.device_put((wave, np.zeros((SIZE, 8), np.float32)), rules.spec("batch"))
    verdict = jax.jit(lambda critic, *placed: critic(*placed))(critic, *placed)
    scores, features = ([np.asarray(part) for part in parts] for parts in (verdict.scores, verdict.features))
    assert len(features) == 2 * len(scores)
    return list(zip(scores, zip(features[::2], features[1::2], strict=True), strict=True))


def convolve(layer, x, stride):
    """[T C] -> [ceil(T / stride) D] place by place, zeros around."""
    kernel = wide(layer.kernel).reshape(-1, *layer.kernel.shape[-2:])
    places = -(-len(x) // stride)
    missing = max((places - 1) * stride + len(kernel) - len(x), 0)
    padded = np.pad(x, ((missing // 2, missing - missing // 2), (0, 0)))
    starts = [place * stride for place in range(places)]
    return np.stack([np.tensordot(padded[s : s + len(kernel)], kernel, 2) for s in starts]) + wide(layer.bias)


def expected(tower, x, stride):
    """Scores [T] and features [T C] each, of what one network reads of one example in one column."""
    features = []
    for layer in tower.layers:
        x = convolve(layer, x, stride)
        x = np.where(x > 0, x, 0.1 * x)
        features.append(x)
    return convolve(tower.score, x, 1)[:, 0], features


def test_networks(wave):
    critic = build()
    found = judge(wave, critic)
    assert len(found) == 4
    for (scores, features), tower, period in zip(found[:2], critic.of_periods, (2, 3), strict=True):
        columns = np.pad(wave, ((0, 0), (0, -SAMPLES % period))).reshape(SIZE, -1, period).astype(np.float64)
        for row, column in [(0, 0), (5, period - 1)]:
            true_scores, true_features = expected(tower, columns[row, :, column, None], 3)
            np.testing.assert_allclose(scores[row, :, column], true_scores, atol=1e-4)
            for seen, true in zip(features, true_features, strict=True):
                np.testing.assert_allclose(seen[row, :, column], true, atol=1e-4)
    for (scores, features), tower, scale in zip(found[2:], critic.of_scales, (1, 2), strict=True):
        averaged = wave.reshape(SIZE, -1, scale).mean(2).astype(np.float64)
        true_scores, true_features = expected(tower, averaged[4, :, None], 4)
        np.testing.assert_allclose(scores[4], true_scores, atol=1e-4)
        for seen, true in zip(features, true_features, strict=True):
            np.testing.assert_allclose(seen[4], true, atol=1e-4)


def test_each_network_sees_what_it_is_for(wave):
    critic = build()
    turned = wave.copy()
    turned[:, [6, 7]] = wave[:, [7, 6]]
    other = wave.copy()
    other[:, 7] += 1
    plain, swapped, raised = (judge(x, critic) for x in (wave, turned, other))
    # The seventh sample is in the second column of rows of three.
    changed = np.abs(raised[1][0] - plain[1][0]).max((0, 1))
    assert (changed[[0, 2]] == 0).all()
    assert changed[1] > 1e-3
    # Averages of two samples are blind to their order.
    assert np.abs(swapped[2][0] - plain[2][0]).max() > 1e-3
    np.testing.assert_allclose(swapped[3][0], plain[3][0], atol=1e-5)


def test_the_same_over_eight_devices(wave):
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()):
        rules = PRESETS["fsdp_tensor"]
        spread = judge(wave, build(rules), rules)
    for found, alone in zip(jax.tree.leaves(spread), jax.tree.leaves(judge(wave, build())), strict=True):
        np.testing.assert_allclose(found, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": ()}, "widths must not be empty"),
        ({"periods": (0,)}, "must be positive"),
        ({"periods": (), "scales": ()}, "needs a period or a scale"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        chz.replace(CONFIG, **wrong)
