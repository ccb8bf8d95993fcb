"""A state that is saved quickly, and says of which step it is."""

import jax.numpy as jnp
import numpy as np

from mmjax.layers.tree import named_leaves


def numbers(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def assert_equal(got, want):
    got, want = numbers(got), numbers(want)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def small(value):
    """A state of which one array is large enough to lie in a file of its own, and which says which it is."""
    return {"x": jnp.sin(value + jnp.arange(20_000, dtype=jnp.float32)), "y": jnp.arange(300) * value}


def save_small(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, small(step), {"at": step}, {})
    checkpoints.wait()


def is_small(restored, step):
    assert (restored.step, restored.extra) == (step, {"at": step})
    assert_equal(restored.state, small(step))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
