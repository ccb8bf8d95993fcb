"""The TFDS builder of cifar10: archives, given or downloaded, to ArrayRecord files."""

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data.archives import tar_files
from mmjax.data.clean import opencv
from mmjax.data.sources.constants import CIFAR10_CLASSES as CLASSES
from mmjax.data.sources.constants import CIFAR10_VERSION as VERSION
from mmjax.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVES = {"train": "cifar10_train_jpg.tar.xz", "test": "cifar10_test_jpg.tar.xz"}
EXAMPLES_PER_FILE = 10_000
ROW = 1 + 3 * 32 * 32  # bytes of a label and a picture in the published files
# Of each class's training pictures, in their order.
VALIDATION = 0.1

# A label and the picture's file.
Example = tuple[int, bytes]


class Cifar10Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10, as published or as an archive of JPEGs; see mmjax.data.sources.cifar10."""

    name = "cifar10"
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, manual_dir: Path | None = None, **kwargs: Any):
        """`manual_dir` holds cifar10/ with two archives of SPLIT/CLASS/NAME.jpg; without it, it downloads."""
        super().__init__(file_format="array_record", **kwargs)
        self._manual_dir = manual_dir

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
                    "label": tfds.features.Scalar(np.int64),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, list[Callable]]:
        if self._manual_dir:
            folder = self._manual_dir / "cifar10"
            given = {split: read_pictures(folder / name, split) for split, name in ARCHIVES.items()}
        else:
            given = read_binary(Path(dl_manager.download(URL)))
        train, validation = hold_out(given["train"])
        splits = {"train": train, "validation": validation, "test": given["test"]}
        total = hashlib.sha256()
        for label, content in (example for rows in splits.values() for example in rows):
            total.update(bytes([label]) + content)
        self.info.metadata["digest"] = total.hexdigest()
        return {
            split: [
                functools.partial(_examples, rows, range(start, min(start + EXAMPLES_PER_FILE, len(rows))))
                for start in range(0, len(rows), EXAMPLES_PER_FILE)
            ]
            for split, rows in splits.items()
        }


def _examples(rows: list[Example], places: range) -> Iterator:
    for place in places:
        label, content = rows[place]
        yield place, {"image": np.frombuffer(content, np.uint8), "label": label}


def hold_out(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """Training and validation rows: the last `VALIDATION` share of each class is for validation."""
    places = defaultdict(list)
    for place, (label, _) in enumerate(rows):
        places[label].append(place)
    held = {place for mine in places.values() for place in mine[len(mine) - round(VALIDATION * len(mine)) :]}
    return [row for place, row in enumerate(rows) if place not in held], [rows[place] for place in sorted(held)]


def read_pictures(archive: Path, split: str) -> list[Example]:
    """The images SPLIT/CLASS/NAME.jpg of an archive, read without unpacking, classes interleaved."""
    by_class: dict[int, list[Example]] = {label: [] for label in range(len(CLASSES))}
    try:
        for name, content in tar_files(archive):
            found = re.fullmatch(rf"{split}/(\w+)/\w+\.jpe?g", name)
            if found and found[1] in CLASSES:
                label = CLASSES.index(found[1])
                by_class[label].append((label, content))
    except FileNotFoundError:
        raise UserError(f"{archive} is missing: it is an archive of CIFAR-10's pictures") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error}): fetch it again") from None
    if not all(by_class.values()):
        raise UserError(f"{archive} has no {split}/{CLASSES[0]}/NAME.jpg, or lacks another class")
    longest = max(map(len, by_class.values()))
    return [mine[turn] for turn in range(longest) for mine in by_class.values() if turn < len(mine)]


def read_binary(archive: Path) -> dict[str, list[Example]]:
    """The images of the published archive as PNG, in its order."""
    cv2 = opencv()
    rows: dict[str, list[Example]] = {"train": [], "test": []}
    try:
        for name, content in sorted((name, content) for name, content in tar_files(archive) if name.endswith(".bin")):
            for row in np.frombuffer(content, np.uint8).reshape(-1, ROW):
                pixels = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                picture = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
                rows["test" if "test" in name else "train"].append((int(row[0]), picture))
    except (OSError, ValueError) as error:
        raise UserError(f"{archive} is not the archive of {URL} ({error}): fetch it again") from None
    if not all(rows.values()):
        raise UserError(f"{archive} is not the archive of {URL}: it has no batches of pictures")
    return rows
