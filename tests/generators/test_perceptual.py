"""Distance by a classifier's features: its formula in plain NumPy, and whose parameters it moves."""

import chz
import jax
import numpy as np
import pytest

from mmjax.generators.perceptual import Perceptual
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import convolve, draw, layers, mlp, norm, wide

RULES = PRESETS["data"]
CONFIG = Perceptual(stem=2, widths=(4, 6), depths=(1, 2), kernel=3, weight=0.5)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def see(trunk, x):
    """What every block of every stage gives, of pixels from -0.5 to 0.5."""
    seen = []
    for shrink, stage in zip(trunk.reduce, trunk.stages, strict=True):
        x = convolve(x, wide(shrink.kernel), shrink.stride[0]) + wide(shrink.bias)
        every = []
        for block in layers(stage):
            full = np.einsum("hwc,cd->hwcd", wide(block.spatial.kernel), np.eye(x.shape[-1]))
            y = norm(block.norm, convolve(x, full, 1) + wide(block.spatial.bias))
            x = x + mlp(block, y) * wide(block.gain)
            every.append(x)
        seen.append(every)
    return seen


def test_the_distance_in_numpy_and_its_gradient():
    module = draw(lambda rngs: CONFIG.build(3, Settings(width=8, rules=RULES), rngs))
    rng = np.random.default_rng(0)
    true, made = rng.uniform(-1, 1, (2, 2, 8, 8, 3))
    stages = zip(*(see(module.judge, x / 2) for x in (true, made)), strict=True)
    on_true, on_made = jax.device_put((true.astype(np.float32), made.astype(np.float32)), RULES.spec("batch"))
    expected = np.zeros(2)
    for one, other in stages:
        unit = [[x / np.linalg.norm(x, axis=-1, keepdims=True) for x in every] for every in (one, other)]
        apart = [np.square(a - b).sum(-1).mean((1, 2)) for a, b in zip(*unit, strict=True)]
        expected += 0.5 * np.mean(apart, 0) / 2

    def total(module, made):
        apart = module(on_true, made)
        return apart.sum(), apart

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (of_module, of_made), apart = run(module, on_made)
    np.testing.assert_allclose(apart, expected, rtol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_module))
    assert np.abs(of_made).max() > 0
    same, _ = jax.jit(total)(module, on_true)
    assert float(same) == pytest.approx(0, abs=1e-9)


def test_a_weight_is_not_negative():
    with pytest.raises(ValueError, match=r"weight=-1\.0 must not be negative"):
        chz.replace(CONFIG, weight=-1.0)
