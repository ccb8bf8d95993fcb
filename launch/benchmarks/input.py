"""Batches of 64 images of 64 x 64 from JPEG files of 256 x 256, with two reader processes."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.sources.base import Source

from .runner import Benchmark, Ratio

FILES, LARGE, SMALL, BATCH, WORKERS = 1024, 256, 64, 64, 2
# Batches of one measurement, after as many that were made ahead.
MEASURED, AHEAD = 40, 20


def folder() -> Path:
    """The folder of JPEG files, created on first use: images of smooth blobs with edges, like photographs."""
    import cv2

    place = Path(tempfile.gettempdir()) / f"benchmark-input-{FILES}-{LARGE}"
    if place.exists():
        return place
    made = Path(tempfile.mkdtemp(prefix="benchmark-input-"))
    rng = np.random.default_rng(0)
    for index in range(FILES):
        coarse = rng.integers(0, 256, (24, 24, 3), np.uint8)
        picture = cv2.resize(coarse, (LARGE, LARGE), interpolation=cv2.INTER_CUBIC)
        for _ in range(6):
            (x, y, radius), colour = rng.integers(8, LARGE, 3).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.circle(picture, (x, y), radius // 4, colour, -1)
        cv2.imwrite(str(made / f"{index}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    with contextlib.suppress(OSError):  # another was faster
        made.rename(place)
    return place


class Files:
    """The files as records."""

    fingerprint = "files"

    def __init__(self, place: Path):
        self.place = place

    def __len__(self) -> int:
        return FILES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": (self.place / f"{index}.jpg").read_bytes()}

    def id(self, index: int) -> str:
        return f"train/{index}"


@chz.chz
class JpegFolder(Source):
    """The files as a source."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def open(self, data_dir: str, split: str) -> Files:
        return Files(Path(data_dir))

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return folder()


def _rate(batches: Iterator[Any]) -> Callable[[], dict[str, float]]:
    """Measures seconds per batch, once the prefetched ones are used up."""

    def measure() -> dict[str, float]:
        for _ in itertools.islice(batches, AHEAD):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(batches, MEASURED):
            pass
        return {"batch": (time.perf_counter() - began) / MEASURED}

    return measure


def ours(dtype: str) -> Callable[[], dict[str, float]]:
    """mmjax's loader."""
    from mmjax.data.inputs import ImageInput
    from mmjax.data.loader import Data, Loader

    data = Data(source=JpegFolder(), inputs={"image": ImageInput(size=SMALL)}, workers=WORKERS)
    return _rate(Loader(data, str(folder()), "train", BATCH, seed=0).iterate(0, 10**6))


def torch(dtype: str) -> Callable[[], dict[str, float]]:
    """PyTorch's `DataLoader` with Pillow, which decodes whole images."""
    return _dataloader(reduced=False)


def reduced(dtype: str) -> Callable[[], dict[str, float]]:
    """Like `full`, but decodes JPEGs at a reduced size, as mmjax does."""
    return _dataloader(reduced=True)


def _dataloader(reduced: bool) -> Callable[[], dict[str, float]]:
    import torch
    from PIL import Image

    place = folder()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**6 * BATCH

        def __getitem__(self, index: int) -> Any:
            picture = Image.open(place / f"{index * 7 % FILES}.jpg")
            if reduced:
                picture.draft("RGB", (SMALL, SMALL))
            picture = picture.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BOX)
            return torch.from_numpy(np.asarray(picture, np.float32) / 255)

    loader = torch.utils.data.DataLoader(Pictures(), BATCH, num_workers=WORKERS, prefetch_factor=4)
    return _rate(iter(loader))


def tensorflow(dtype: str) -> Callable[[], dict[str, float]]:
    """tf.data, with as many threads as the others have processes."""
    import tensorflow as tf

    place = folder()

    def read(index: Any) -> Any:
        content = tf.io.read_file(tf.strings.join([str(place), "/", tf.strings.as_string(index * 7 % FILES), ".jpg"]))
        picture = tf.image.resize(tf.io.decode_jpeg(content, channels=3), (SMALL, SMALL), method="area")
        return picture / 255

    batches = tf.data.Dataset.range(10**9).map(read, num_parallel_calls=WORKERS).batch(BATCH).prefetch(4)
    return _rate(batches.as_numpy_iterator())


BENCHMARK = Benchmark(
    about="batches of 64 pictures from JPEG files",
    implementations={"mmjax": ours, "torch": torch, "torch, reduced": reduced, "tf.data": tensorflow},
    ratios=(
        Ratio("a batch, over PyTorch's DataLoader with Pillow", "mmjax", "torch", "batch"),
        Ratio("a batch, over the same with JPEGs decoded at a fraction", "mmjax", "torch, reduced", "batch"),
        Ratio("a batch, over tf.data", "mmjax", "tf.data", "batch"),
    ),
)
