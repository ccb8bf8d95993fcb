"""Parameters as int8 differ from what they were by at most half a step."""

import numpy as np

from mmjax.checkpoint.int8 import dequantize, quantize


def test_half_a_step_from_what_they_were():
    rng = np.random.default_rng(0)
    given = {
        "kernel": rng.normal(size=(64, 96)).astype("f") * np.logspace(-6, 3, 64, dtype="f")[:, None],
        "heads/kernel": rng.normal(size=(2, 64, 4, 16)).astype("f"),
        "text/embedding": rng.normal(size=(500, 16)).astype("f") * np.logspace(-6, 3, 500, dtype="f")[:, None],
        "gain": rng.normal(size=5000).astype("f"),
        "small": rng.normal(size=(8, 8)).astype("f"),
        "counts": rng.integers(0, 9, (64, 96)),
        "zero": np.zeros((64, 96), "f"),
    }
    written = quantize(given)
    assert {name: written[name].shape for name in written if name.endswith(".scale")} == {
        "kernel.scale": (64, 1),
        "heads/kernel.scale": (2, 1, 4, 16),
        "text/embedding.scale": (500, 1),
        "zero.scale": (64, 1),
    }
    read = dequantize(written)
    assert [*read] == [*given]
    for name, array in given.items():
        assert read[name].dtype == array.dtype
        step = written.get(f"{name}.scale", 0)
        assert np.all(np.abs(read[name] - array) <= step * np.float32(0.5001)), name
    assert written["kernel"].dtype == np.int8
    np.testing.assert_array_equal(np.abs(written["kernel"]).max(1), 127)  # all of the range is used
