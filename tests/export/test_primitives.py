"""A simplified function computes what the function does, without the primitives that are not converted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mmjax.export.primitives import simplify


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_are_written_out(reverse):
    def function(x, rows):
        def step(carry, row):
            return jnp.tanh(carry @ row + x), (carry.sum(), row[0] * carry)

        carry, (sums, products) = lax.scan(step, x, rows, reverse=reverse)
        return [carry, sums, products]

    rng = np.random.default_rng(0)
    given = rng.normal(size=3).astype("f"), rng.normal(size=(4, 3, 3)).astype("f")
    plain = simplify(function, *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in given))
    for found, wanted in zip(plain(*given), function(*given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert "scan" not in str(jax.make_jaxpr(plain)(*given))
