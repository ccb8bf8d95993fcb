"""Grids of pictures and spectra: what counts of them, and what a critic sees."""

import jax.numpy as jnp
import numpy as np

from mmjax.generators.canvas import Canvas
from mmjax.types import Batch, Image, Spectrogram


def test_every_colour_counts_where_there_is_a_picture():
    canvas = Canvas("image", Image(4, 6, 3), 2)
    batch = Batch({"image": jnp.full((2, 4, 6, 3), 0.75)}, {}, {"image": jnp.asarray([True, False])})
    np.testing.assert_array_equal(canvas.size(batch), [4 * 6 * 3, 0])
    np.testing.assert_array_equal(
        canvas.squared_error(jnp.ones((2, 4, 6, 3)), 3 * jnp.ones((2, 4, 6, 3)), batch), [288, 0]
    )
    np.testing.assert_array_equal(canvas.from_batch(batch)[:, 0, 0, 0], [0.5, 0])


def test_what_is_filled_up_absent_or_not_real_is_hidden():
    canvas = Canvas("speech", Spectrogram(3, 5, 0.01), 4)
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    batch = Batch({"speech": jnp.ones((2, 3, 5))}, {"speech": mask}, {"speech": jnp.asarray([True, False])})
    expected = np.zeros((2, 4, 8, 1))
    expected[0, :2, :5] = 1
    np.testing.assert_array_equal(canvas.mask(jnp.ones((2, 4, 8, 1)), batch), expected)
    np.testing.assert_array_equal(canvas.from_batch(batch), expected)
