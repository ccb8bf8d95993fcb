"""A patch critic, written out in NumPy."""

import jax
import numpy as np
import pytest

from mmjax.generators.critics import CriticOutput, PatchCritic
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import convolve, draw, linear, wide

RULES = PRESETS["data"]
CRITIC = PatchCritic(widths=(4, 8))


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def test_a_patch_critic_in_numpy():
    settings = Settings(width=16, rules=RULES)
    critic = draw(lambda rngs: CRITIC.build(1, settings, rngs))
    rng = np.random.default_rng(1)
    x, condition = rng.normal(size=(2, 8, 6, 1)), rng.normal(size=(2, 16))

    def leak(x):
        return np.where(x > 0, x, 0.2 * x)

    def conv(layer, x):
        return convolve(x, wide(layer.kernel), layer.stride[0]) + wide(layer.bias)

    def halve(layer, x):
        x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        corners = [x[:, row::2, column::2] for row in range(2) for column in range(2)]
        return linear(layer.linear, np.concatenate(corners, -1))

    y = conv(critic.stem, x)
    for level, block in zip(critic.halve, critic.blocks, strict=True):
        y = halve(level, leak(y))
        y = y + conv(block.second, leak(conv(block.first, leak(y))))
    y = leak(y)
    scores = conv(critic.score, y)[..., 0]
    scores += np.einsum("bhwc,bc->bhw", y, linear(critic.project, condition)) / np.sqrt(8)
    run = jax.jit(lambda critic, *given: critic(*given))
    given = jax.device_put((x.astype(np.float32), condition.astype(np.float32)), RULES.spec("batch"))
    verdict = run(critic, *given)
    np.testing.assert_allclose(verdict.scores[0], scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jax.jit(CriticOutput.mean)(verdict), scores.mean((1, 2)), rtol=1e-3, atol=1e-4)
    assert [features.shape for features in verdict.features] == [(2, 4, 3, 4), (2, 2, 2, 8)]
