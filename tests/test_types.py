"""Averages."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.types import Average


def test_average_is_the_weighted_mean():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(6, 3)).astype(np.float32), rng.uniform(size=(6, 1)).astype(np.float32)
    average = Average.of(jnp.asarray(values), weights)
    expected = np.average(values, weights=np.broadcast_to(weights, values.shape))
    np.testing.assert_allclose(average.value(), expected, rtol=1e-5)
    assert float(Average.of(jnp.asarray([2.0, 4.0]), 0.25).value()) == 3


def test_averages_of_parts_add_up_to_that_of_the_whole():
    values, there = jnp.arange(6.0), jnp.asarray([1, 0, 1, 1, 1, 0], bool)
    parts = [Average.of(values[part], there[part]).summed() for part in (slice(0, 2), slice(2, 6))]
    whole = jax.tree.map(jnp.add, *parts)
    assert float(whole.value()) == float(Average.of(values, there).value()) == (0 + 2 + 3 + 4) / 4


def test_weight_zero_hides_what_is_not_finite():
    values = jnp.asarray([1.0, np.nan, np.inf, 3.0])
    there = jnp.asarray([True, False, False, True])
    assert float(Average.of(values, there).value()) == 2
    assert float(Average.of(values, jnp.zeros(4)).value()) == 0
    gradient = jax.grad(lambda values: Average.of(values, there).value())(values)
    np.testing.assert_array_equal(gradient, [0.5, 0, 0, 0.5])


def test_every_example_has_its_own_sums():
    values = jnp.arange(12.0).reshape(2, 3, 2)
    there = jnp.asarray([[True, False, True], [False, True, False]])[..., None]
    average = Average.of(values, there)
    np.testing.assert_array_equal(average.totals, [0 + 1 + 4 + 5, 8 + 9])
    np.testing.assert_array_equal(average.weights, [4, 2])
    assert float(average.value()) == float(average.summed().value()) == 27 / 6


def test_sums_are_float32():
    average = Average.of(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, bool))
    assert average.total.dtype == average.weight.dtype == jnp.float32
    assert float(average.total) == 1000
