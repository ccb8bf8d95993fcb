"""A training step on packed sequences is the one on padded sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.encoders import AudioTransformer, Recurrent, TextTransformer
from mmjax.fusion import CrossAttention
from mmjax.generators import TextDecoder
from mmjax.heads import Classify, Contrast
from mmjax.layers.packed import unpack_batch
from mmjax.model import Model, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.packing import pack
from tests.small import FEATURES, make_batch

RULES = PRESETS["fsdp"]
MODEL = Model(
    encoders={
        "text": TextTransformer(depth=1, heads=2),
        "speech": AudioTransformer(convolutions=1, depth=1, heads=2),
        "song": Recurrent(patch=2),
    },
    outputs={
        "label": Classify(target="label"),
        "words": TextDecoder(target="text", depth=1, heads=2),
        "match": Contrast(first="speech", second="text"),
    },
    fusion=CrossAttention(depth=1, heads=2),
    width=16,
    dtype="float32",
)
ROWS = {"text": (12, 8, 1), "speech": (20, 8, 2), "song": (16, 8, 2)}


@pytest.mark.parametrize("devices", [4])
def test_losses_and_gradients_are_those_of_padded_sequences(devices):
    padded = make_batch(presence=0.8)
    packed = padded
    for name, (length, rows, multiple) in ROWS.items():
        packed = pack(packed, name, length, rows, multiple, parts=4)
    with jax.set_mesh(MeshShape(fsdp=devices).build(jax.devices()[:devices])):
        model = jax.jit(lambda key: build_model(key, MODEL, FEATURES, RULES))(jax.random.key(0))
        spec = RULES.spec("batch")

        def run(batch):
            loss = lambda model, batch: model.loss(batch)  # noqa: E731
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(model, jax.device_put(batch, spec))

        (loss, metrics), grads = run(packed)
        (wanted_loss, wanted_metrics), wanted_grads = run(padded)
        restored = jax.jit(lambda batch: unpack_batch(batch, RULES))(jax.device_put(packed, spec))
    np.testing.assert_allclose(loss, wanted_loss, atol=1e-5)
    assert metrics.keys() == wanted_metrics.keys()
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric.value(), wanted_metrics[name].value(), atol=1e-5, err_msg=name)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for name in ROWS:
        real = padded.mask[name] & padded.present[name][:, None]
        assert np.array_equal(restored.mask[name], real)
        np.testing.assert_array_equal(np.asarray(restored.values[name])[real], padded.values[name][real])
    assert float(jnp.abs(loss)) > 0
