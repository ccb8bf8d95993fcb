"""The network over time against plain NumPy, and what it must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers.settings import Settings
from mmjax.layers.temporal_conv import TemporalConvNet
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests import reference
from tests.reference import draw, wide

WIDTH, KERNEL = 8, 3
SETTINGS = Settings(width=WIDTH, rules=PRESETS["fsdp_tensor"])


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def expected(net, x, mask, summary):
    """Place by place: a convolution sees the real places around it."""
    x = reference.linear(net.into, np.where(mask[..., None], x, 0)) + reference.linear(net.condition, summary)[:, None]
    for block in reference.layers(net.stack):
        seen, kernel = np.where(mask[..., None], x, 0), wide(block.spatial.kernel)
        y = np.zeros(x.shape) + wide(block.spatial.bias)
        for place in range(x.shape[1]):
            for offset in range(KERNEL):
                if 0 <= place + offset - 1 < x.shape[1]:
                    y[:, place] += seen[:, place + offset - 1] * kernel[offset]
        y = reference.linear(block.up, reference.norm(block.norm, y))
        x = x + reference.linear(block.down, reference.gelu(y)) * wide(block.gain)
    return reference.linear(net.out, reference.norm(net.norm, x))


def test_time_net():
    net = draw(lambda rngs: TemporalConvNet(5, 6, 2, KERNEL, SETTINGS, rngs))
    rng = np.random.default_rng(0)
    x, summary = rng.normal(size=(3, 7, 5)), rng.normal(size=(3, WIDTH))
    mask = np.arange(7) < np.array([7, 4, 0])[:, None]
    x[~mask] = np.nan
    found = jax.jit(net)(jnp.asarray(x, jnp.float32), jnp.asarray(mask), jnp.asarray(summary, jnp.float32))
    np.testing.assert_allclose(found, expected(net, x, mask, summary), atol=1e-4)


def test_time_net_starts_at_the_scale_it_is_given():
    net = TemporalConvNet(5, 6, 1, KERNEL, SETTINGS, nnx.Rngs(0), scale=0.0)
    assert not np.asarray(net.out.kernel[...]).any()
