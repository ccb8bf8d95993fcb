"""cifar10: small photographs of ten kinds of things, with a caption, as TFDS keeps them in ArrayRecord files."""

from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.sources import building
from mmjax.data.sources.base import Records, Source
from mmjax.errors import UserError
from mmjax.files import local_path

VERSION = "1.0.0"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEMPLATES = (
    "a photo of {}",
    "a small picture of {}",
    "this is {}",
    "{} in a photograph",
    "here you can see {}",
    "a blurred photo of {}",
)


@chz.chz
class Cifar10(Source):
    """60,000 photographs of 32 x 32 pixels (Krizhevsky 2009); the last tenth of each class's train is validation.

    Raw fields: `image`, a PNG or JPEG; `label`, an index into CLASSES; `text`, one of TEMPLATES that names the class,
    the same one whenever the example is read.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def _folder(self, data_dir: str) -> Path:
        return local_path(data_dir) / "cifar10" / VERSION

    def open(self, data_dir: str, split: str) -> Records:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            raise UserError(
                f"there is no cifar10 in {data_dir}: run `python -m launch.prepare cifar10 data_dir={data_dir}`, with "
                "manual_dir=FOLDER if the raw files are at hand"
            )
        return Cifar10Records(folder, split)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            from mmjax.data.sources.cifar10_builder import Cifar10Builder

            raw = local_path(manual_dir) if manual_dir else None
            building.build(Cifar10Builder(data_dir=local_path(data_dir), manual_dir=raw))
        return folder


class Cifar10Records:
    """The examples of one split of a built cifar10."""

    def __init__(self, folder: Path, split: str):
        self._stored, self._split = building.Stored(folder, split), split
        self.fingerprint = self._stored.fingerprint

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._stored[index]
        if "image" in example:
            example["image"] = example["image"].tobytes()
        if example.get("label") in range(len(CLASSES)):
            template = np.random.default_rng((len(self), index)).choice(TEMPLATES)
            example["text"] = template.format(_with_article(CLASSES[example["label"]]))
        return example

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
