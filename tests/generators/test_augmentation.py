"""What critics see of pictures: moved, cut, in another light."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generators.augmentation import diff_augment
from mmjax.sharding.mesh import MeshShape


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def test_augmentation_moves_cuts_and_lets_gradients_pass():
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, size=(64, 16, 16, 3)), jnp.float32)
    run = jax.jit(diff_augment)
    seen = run(x, jax.random.key(0))
    np.testing.assert_array_equal(seen, run(x, jax.random.key(0)))
    assert np.abs(seen - run(x, jax.random.key(1))).max() > 0.1
    gradient = np.asarray(jax.jit(jax.grad(lambda x: diff_augment(x, jax.random.key(0)).sum()))(x))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    # Light keeps which of two pictures is which: an affine map of each, so what is constant stays so where it is seen.
    flat = np.asarray(run(jnp.full((64, 16, 16, 3), 0.7), jax.random.key(2)))
    for picture in flat:
        values = np.unique(np.round(picture[np.abs(picture).sum(-1) > 0], 4))
        assert len(values) <= 1
    # Whole rows and columns are zero where a picture was moved away from that side.
    for axes in ((2, 3), (1, 3)):
        sides = (flat == 0).all(axes)
        assert sides[:, 0].any()
        assert sides[:, -1].any()
    # A box of half of each side is cut, and a shift of up to two places leaves more zeros.
    zeros = (flat == 0).all(-1).mean((1, 2))
    assert 1 / 16 <= zeros.min() <= zeros.mean() <= 0.5
    assert len(np.unique(zeros)) > 5
