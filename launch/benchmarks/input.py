"""Batches of 64 images of 64 x 64 from JPEGs of 256 x 256, in files, tars or Parquet, with two reader processes."""

import contextlib
import itertools
import tarfile
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
SHARDS = 4
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


def packed(suffix: str) -> Path:
    """The folder of the same files in four tars, or in one Parquet file as Hugging Face writes it."""
    place = folder().with_name(f"{folder().name}-{suffix}")
    if place.exists():
        return place
    made = Path(tempfile.mkdtemp(prefix="benchmark-input-"))
    files = [folder() / f"{index}.jpg" for index in range(FILES)]
    if suffix == "tar":
        for shard in range(SHARDS):
            with tarfile.open(made / f"train-{shard}.tar", "w") as archive:
                for file in files[shard::SHARDS]:
                    archive.add(file, file.name)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pictures = pa.array([{"bytes": file.read_bytes(), "path": file.name} for file in files])
        pq.write_table(pa.table({"image": pictures}), made / "train.parquet", row_group_size=100)
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
    """mmjax's loader, in shuffled order."""
    return _loader(JpegFolder(), str(folder()))


def our_tars(dtype: str) -> Callable[[], dict[str, float]]:
    """mmjax's loader of tars, in shuffled order."""
    from mmjax.data.formats.web_dataset import WebDataset

    source = WebDataset(path=str(packed("tar")))
    return _loader(source, tempfile.mkdtemp(prefix="benchmark-index-"))


def our_parquet(dtype: str) -> Callable[[], dict[str, float]]:
    """mmjax's loader of Parquet, in shuffled order."""
    from mmjax.data.formats.arrow import Parquet

    return _loader(Parquet(path=str(packed("parquet"))), tempfile.mkdtemp(prefix="benchmark-index-"))


def _loader(source: Source, data_dir: str) -> Callable[[], dict[str, float]]:
    from mmjax.data.inputs import ImageInput
    from mmjax.data.loader import Data, Loader

    data = Data(source=source, inputs={"image": ImageInput(size=SMALL)}, workers=WORKERS)
    return _rate(Loader(data, data_dir, "train", BATCH, seed=0).iterate(0, 10**6))


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
            return torch.from_numpy(_decode(Image.open(place / f"{index * 7 % FILES}.jpg"), reduced))

    loader = torch.utils.data.DataLoader(Pictures(), BATCH, num_workers=WORKERS, prefetch_factor=4)
    return _rate(iter(loader))


def _decode(picture: Any, reduced: bool) -> np.ndarray:
    """A picture that Pillow has opened, scaled and as floats."""
    from PIL import Image

    if reduced:
        picture.draft("RGB", (SMALL, SMALL))
    return np.asarray(picture.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BOX), np.float32) / 255


def webdataset(dtype: str) -> Callable[[], dict[str, float]]:
    """The library `webdataset` reading tars in order, in a `DataLoader`, decoding as `reduced` does."""
    import io

    import torch
    import webdataset as wds
    from PIL import Image

    tars = sorted(map(str, packed("tar").iterdir()))

    def read(example: dict[str, Any]) -> Any:
        return torch.from_numpy(_decode(Image.open(io.BytesIO(example["jpg"])), reduced=True))

    # Whole shards go to each worker.
    dataset = wds.WebDataset(tars, shardshuffle=False, workersplitter=wds.split_by_worker).map(read).repeat()
    return _rate(iter(torch.utils.data.DataLoader(dataset, BATCH, num_workers=WORKERS, prefetch_factor=4)))


def datasets(dtype: str) -> Callable[[], dict[str, float]]:
    """Hugging Face's `datasets` of Parquet in torch format, in a shuffling `DataLoader`; it decodes whole images."""
    import datasets
    import torch

    files = str(packed("parquet") / "train.parquet")
    cache = tempfile.mkdtemp(prefix="benchmark-datasets-")
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    found = found.cast_column("image", datasets.Image()).with_format("torch")

    def collate(examples: list[dict[str, Any]]) -> Any:
        whole = torch.stack([example["image"] for example in examples]).float() / 255
        return torch.nn.functional.interpolate(whole, (SMALL, SMALL), mode="area")

    loader = torch.utils.data.DataLoader(
        found,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        prefetch_factor=4,
        collate_fn=collate,
        persistent_workers=True,
    )
    return _rate(itertools.chain.from_iterable(itertools.repeat(loader)))


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
    implementations={
        "mmjax": ours,
        "torch": torch,
        "torch, reduced": reduced,
        "tf.data": tensorflow,
        "mmjax, tar": our_tars,
        "webdataset": webdataset,
        "mmjax, Parquet": our_parquet,
        "datasets": datasets,
    },
    ratios=(
        Ratio("a batch, over PyTorch's DataLoader with Pillow", "mmjax", "torch", "batch"),
        Ratio("a batch, over the same with JPEGs decoded at a fraction", "mmjax", "torch, reduced", "batch"),
        Ratio("a batch, over tf.data", "mmjax", "tf.data", "batch"),
        Ratio("a batch of tars, shuffled, over webdataset in order", "mmjax, tar", "webdataset", "batch"),
        Ratio("a batch of Parquet, over datasets in torch format", "mmjax, Parquet", "datasets", "batch"),
    ),
)
