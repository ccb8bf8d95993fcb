"""Small examples made from their index, a loader of them, and raw values for the tests of inputs."""

import sys
from pathlib import Path
from typing import Any

import chz
import cloudpickle
import cv2
import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.batching.host_batch import HostBatch
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Recording, Source

# Worker processes get these classes with what a test has changed in them.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

COUNT, SIZE = 23, 8


class Memory:
    """Small examples made from their index; `broken` replaces fields of some, and None there removes one."""

    fingerprint = "memory"

    def __init__(self, split: str, count: int, broken: dict[int, dict[str, Any]]):
        self.split, self.count, self.broken = split, count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        example = {
            "image": cv2.imencode(".png", rng.integers(0, 255, (10, 10, 3), np.uint8))[1].tobytes(),
            "speech": Recording((3000 * rng.standard_normal(800)).astype(np.int16), 8000),
            "caption": f"example number {index}",
            "label": index % 5,
            "place": [[index, -index]],
        }
        return {name: value for name, value in (example | self.broken.get(index, {})).items() if value != "gone"}

    def id(self, index: int) -> str:
        return f"{self.split}/{index}"


@chz.chz
class InMemory(Source):
    count: int = COUNT
    broken: dict = chz.field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def open(self, data_dir: str, split: str) -> Memory:
        return Memory(split, self.count, self.broken)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return Path(data_dir)


def data(*, broken=None, count=COUNT, **options) -> Data:
    inputs = {
        "image": ImageInput(size=8, augment=ImageAugment(flip=0.5, rotate=20)),
        "speech": SpectrogramInput(seconds=0.1, augment=SpectrogramAugment(gain=3, noise=0.1, time_masks=1)),
        "text": TextInput(field="caption", length=24),
        "label": LabelInput(names=tuple("abcde")),
        "place": VectorInput(size=2),
    }
    return Data(source=InMemory(count=count, broken=broken or {}), inputs=inputs, **options)


def loader(*, seed: int | None = 7, rows=None, examples=None, batch_size=SIZE, **options) -> Loader:
    return Loader(data(**options), "", "train", batch_size, seed=seed, rows=rows, examples=examples)


def arrays(host: HostBatch) -> dict[str, np.ndarray]:
    """Every array of a batch by a readable name."""
    parts = {"values": host.batch.values, "mask": host.batch.mask, "present": host.batch.present}
    return {f"{part}/{name}": value for part, fields in parts.items() for name, value in fields.items()}


def assert_same(one: HostBatch, other: HostBatch) -> None:
    assert (one.step, one.ids, one.errors) == (other.step, other.ids, other.errors)
    assert arrays(one).keys() == arrays(other).keys()
    for name, value in arrays(one).items():
        np.testing.assert_array_equal(value, arrays(other)[name], err_msg=name)


PICTURE = Memory("train", 1, {})[0]["image"]
DAMAGE = {
    0: {"image": b"no picture"},
    3: {"image": PICTURE[:-20], "label": 5},
    4: {"speech": Recording(np.full(800, np.nan, np.float32), 8000)},
    9: {"caption": " ", "place": [[np.inf, 0.0]]},
    11: {"speech": Recording(np.zeros(0, np.int16), 8000), "caption": "gone"},
}


def samples(seconds=0.5, rate=8000, seed=0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


def damaged(*cases):
    """Runs a test for pairs of a raw value and the reason why it is refused."""
    return pytest.mark.parametrize(("raw", "reason"), cases, ids=[reason for _, reason in cases])
