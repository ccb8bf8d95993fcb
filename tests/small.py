"""Batches and features small enough to compile quickly."""

import jax
import numpy as np

from mmjax.sharding.rules import Rules
from mmjax.types import Batch, Feature, Image, Label, Spectrogram, Text, Vector

FEATURES: dict[str, Feature] = {
    "image": Image(8, 8, 1),
    "text": Text(5, 16),
    "speech": Spectrogram(10, 4, 0.01),
    "song": Spectrogram(8, 4, 0.02),
    "label": Label(("circle", "square", "star"), slots=2),
    "place": Vector(2, slots=2),
}
SIZE = 8


def make_batch(seed: int = 0, size: int = SIZE, presence: float = 1.0) -> Batch:
    """A NumPy batch of every feature in FEATURES. A share `presence` of all features is there; masks are ragged."""
    rng = np.random.default_rng(seed)
    values = {
        "image": rng.uniform(size=(size, 8, 8, 1)).astype(np.float32),
        "text": rng.integers(1, 16, (size, 5)).astype(np.int32),
        "speech": rng.normal(size=(size, 10, 4)).astype(np.float32),
        "song": rng.normal(size=(size, 8, 4)).astype(np.float32),
        "label": rng.integers(0, 3, (size, 2)).astype(np.int32),
        "place": rng.normal(size=(size, 2, 2)).astype(np.float32),
    }
    mask = {}
    for name, array in values.items():
        if name != "image":
            mask[name] = np.arange(array.shape[1]) < rng.integers(1, array.shape[1] + 1, (size, 1))
    present = {name: rng.uniform(size=size) < presence for name in values}
    return Batch(values, mask, present)


def put(batch: Batch, rules: Rules) -> Batch:
    """The batch on the current mesh."""
    return jax.device_put(batch, rules.spec("batch"))
