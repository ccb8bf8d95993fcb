"""Streams of tokens for fusions to fuse, with modalities that are absent."""

import jax
import numpy as np

from mmjax.layers.settings import Settings
from mmjax.sharding.rules import PRESETS
from mmjax.types import Tokens
from tests.reference import draw

WIDTH = 16
RULES = PRESETS["data"]
SETTINGS = Settings(width=WIDTH, rules=RULES)
LENGTHS = {"image": 4, "speech": 3, "text": 2}


def make_streams(modalities, rules=RULES, seed=0):
    """Example 0 has everything, 1 lacks the first modality, 2 lacks all; speech has a time."""
    rng = np.random.default_rng(seed)
    streams = {}
    for index, name in enumerate(modalities):
        shape = (4, LENGTHS[name])
        mask = rng.uniform(size=shape) < 0.7
        mask[0] = True
        mask[1], mask[2] = index > 0, False
        time = rng.uniform(size=shape).astype(np.float32) if name == "speech" else None
        values = rng.normal(size=(*shape, WIDTH)).astype(np.float32)
        streams[name] = Tokens(*jax.device_put((values, mask, time), rules.spec("batch")))
    return streams


def run(fusion, streams):
    compiled = jax.jit(lambda streams: fusion(streams, None)[:2])
    return compiled(streams)


def build(config, modalities):
    return draw(lambda rngs: config.build(tuple(modalities), SETTINGS, rngs), scale=0.2)


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
