"""cifar10: small photographs of ten classes with a caption, stored by TFDS in ArrayRecord files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.mirror import data_root
from mmjax.data.sources import building
from mmjax.data.sources.base import Records
from mmjax.data.sources.constants import CIFAR10_CLASSES as CLASSES
from mmjax.data.sources.constants import CIFAR10_VERSION as VERSION

TEMPLATES = (
    "a photo of {}",
    "a small picture of {}",
    "this is {}",
    "{} in a photograph",
    "here you can see {}",
    "a blurred photo of {}",
)


@chz.chz
class Cifar10(building.BuiltSource):
    """60,000 photographs of 32 x 32 pixels (Krizhevsky 2009).

    The last tenth of each class's train split is the validation split. Raw fields: `image`, a PNG or JPEG; `label`, an
    index into CLASSES; `text`, one of TEMPLATES with the class's name, always the same one for an example.
    """

    def _folder(self, data_dir: str) -> Path:
        return data_root(data_dir) / "cifar10" / VERSION

    def _builder(self) -> Callable[..., Any]:
        from mmjax.data.sources.cifar10_builder import Cifar10Builder

        return Cifar10Builder

    def open(self, data_dir: str, split: str) -> Records:
        return Cifar10Records(self.built_folder(data_dir), split)


class Cifar10Records(building.StoredExamples):
    """The examples of one split of a built cifar10."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        if "image" in example:
            example["image"] = example["image"].tobytes()
        if example.get("label") in range(len(CLASSES)):
            template = np.random.default_rng((len(self), index)).choice(TEMPLATES)
            example["text"] = template.format(_with_article(CLASSES[example["label"]]))
        return example


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
