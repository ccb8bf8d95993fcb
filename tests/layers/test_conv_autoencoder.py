"""The residual block of pictures against plain NumPy."""

import jax
import numpy as np
import pytest

from mmjax.layers.conv_autoencoder import ResidualBlock
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import convolve, draw, gelu, linear, norm, wide


@pytest.mark.parametrize("conditional", [True, False])
def test_a_residual_block_is_scaled_and_shifted(conditional):
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(2, 3))

    def conv(layer, x):
        return convolve(x, wide(layer.kernel), 1) + wide(layer.bias)

    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=1).build()):
        block = draw(lambda rngs: ResidualBlock(4, 3, rules=rules, rngs=rngs))
        given = jax.device_put((x.astype(np.float32), condition.astype(np.float32)), rules.spec("batch"))
        found = jax.jit(lambda x, condition: block(x, condition if conditional else None))(*given)
    y = norm(block.second_norm, conv(block.first, gelu(norm(block.first_norm, x))))
    if conditional:
        scale, shift = np.moveaxis(linear(block.film, condition), 1, 0)[:, :, None, None]
        y = y * (1 + scale) + shift
    np.testing.assert_allclose(found, x + conv(block.second, gelu(y)), rtol=1e-4, atol=1e-5)
