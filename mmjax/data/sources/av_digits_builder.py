"""The TFDS builder of av_digits: raw files, given or downloaded, to ArrayRecord files."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from mmjax.data.sources import fsdd, mnist, noise
from mmjax.data.sources.constants import AV_DIGITS_VERSION as VERSION
from mmjax.data.sources.pairs import PAIRINGS, Pair, Pairs, make_digit_pairs, read_digit_pairs
from mmjax.errors import UserError

EXAMPLES_PER_FILE = 4096
NAMED = 20  # of the recordings that cannot be read


@dataclasses.dataclass
class AvDigitsConfig(tfds.core.BuilderConfig):
    """Which pairing table, and whether images and recordings are made noisy."""

    pairing: str = PAIRINGS[0]
    noisy: bool = True


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """All raw data: the pairs, MNIST's images by file, and the readable recordings."""

    pairs: Pairs
    pictures: Mapping[str, np.ndarray]
    recordings: Mapping[str, np.ndarray]

    def digest(self) -> str:
        """SHA-256 of all of it."""
        total = hashlib.sha256(repr(self.pairs).encode())
        for name, array in [*sorted(self.pictures.items()), *sorted(self.recordings.items())]:
            total.update(f"{name} {array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


class AvDigitsBuilder(tfds.core.ShardBasedBuilder):
    """MNIST images paired with FSDD recordings of the same digit; see mmjax.data.sources.av_digits."""

    name = "av_digits"
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS declares it so)
        AvDigitsConfig(
            name=f"{pairing}_{'noisy' if noisy else 'clean'}",
            description=f"{pairing}; {'4 principal components, babble and white noise' if noisy else 'as published'}",
            pairing=pairing,
            noisy=noisy,
        )
        for pairing in PAIRINGS
        for noisy in (True, False)
    ]

    def __init__(self, *, manual_dir: Path | None = None, **kwargs: Any):
        """`manual_dir` holds mnist/ and fsdd/recordings/; without it, files are downloaded.

        It may also hold av_digits/pairs_PAIRING.csv.gz.
        """
        super().__init__(file_format="array_record", **kwargs)
        self._manual_dir = manual_dir

    def _info(self) -> tfds.core.DatasetInfo:
        array = functools.partial(tfds.features.Tensor, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
            features=tfds.features.FeaturesDict(
                {
                    # Empty where the raw file could not be read.
                    "image": array(shape=(None, 28, 1), dtype=np.uint8),
                    "speech": array(shape=(None,), dtype=np.int16),
                    "label": tfds.features.Scalar(np.int64),
                    "mnist_file": tfds.features.Text(),
                    "mnist_index": tfds.features.Scalar(np.int64),
                    "fsdd_file": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config: Any = None) -> None:
        self._absent = {"image": 0, "speech": 0}
        with tqdm(desc=self.info.full_name, unit=" examples", mininterval=1, delay=0.1) as self._progress:
            super()._download_and_prepare(dl_manager, download_config)
        for field, count in self._absent.items():
            if count:
                print(f"{count} examples have no {field}, because it could not be read", file=sys.stderr)

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, list[Callable]]:
        raw = self._read_folder(self._manual_dir) if self._manual_dir else self._download(dl_manager)
        self.info.metadata["digest"] = raw.digest()
        make = NoisyExamples(raw) if self.builder_config.noisy else CleanExamples(raw)
        self._progress.reset(sum(map(len, raw.pairs.values())))
        return {
            split: [
                functools.partial(self._examples, make, split, range(start, min(start + EXAMPLES_PER_FILE, len(rows))))
                for start in range(0, len(rows), EXAMPLES_PER_FILE)
            ]
            for split, rows in raw.pairs.items()
        }

    def _read_folder(self, folder: Path) -> RawFiles:
        pictures = {file: mnist.read_pictures(folder / "mnist" / name) for file, name in mnist.PICTURES.items()}
        table = folder / "av_digits" / f"pairs_{self.builder_config.pairing}.csv.gz"
        if table.exists():
            pairs = read_digit_pairs(table)
        else:
            labels = {file: mnist.read_labels(folder / "mnist" / name) for file, name in mnist.LABELS.items()}
            pairs = make_digit_pairs(self.builder_config.pairing, labels["train"], labels["t10k"])
        recordings = folder / "fsdd" / "recordings"
        if not recordings.is_dir():
            raise UserError(f"{recordings} is missing: get FSDD and put its folder of WAV files there")
        return RawFiles(pairs, pictures, _read_recordings(fsdd.folder_reader(recordings), pairs))

    def _download(self, dl_manager: tfds.download.DownloadManager) -> RawFiles:
        names = [*mnist.PICTURES.values(), *mnist.LABELS.values()]
        downloaded = dl_manager.download({name: mnist.URL + name for name in names} | {"fsdd": fsdd.URL})
        paths = {name: Path(path) for name, path in downloaded.items()}
        pictures = {file: mnist.read_pictures(paths[name]) for file, name in mnist.PICTURES.items()}
        labels = {file: mnist.read_labels(paths[name]) for file, name in mnist.LABELS.items()}
        pairs = make_digit_pairs(self.builder_config.pairing, labels["train"], labels["t10k"])
        return RawFiles(pairs, pictures, _read_recordings(fsdd.archive_reader(paths["fsdd"]), pairs))

    def _examples(self, make: "CleanExamples | NoisyExamples", split: str, rows: range) -> Iterator:
        for row in rows:
            example = make(split, row)
            for field in self._absent:
                self._absent[field] += not example[field].size
            yield row, example
            self._progress.update()


class CleanExamples:
    """Examples as published."""

    def __init__(self, raw: RawFiles):
        self._raw = raw

    def __call__(self, split: str, row: int) -> dict[str, Any]:
        """Example `row` of a split, in the form that TFDS stores."""
        pair = self._raw.pairs[split][row]
        return {
            "image": self._picture(pair)[..., None],
            "speech": self._speech(pair, split),
            "label": pair.label,
            "mnist_file": pair.mnist_file,
            "mnist_index": pair.mnist_index,
            "fsdd_file": pair.fsdd_file,
        }

    def _picture(self, pair: Pair) -> np.ndarray:
        pictures = self._raw.pictures[pair.mnist_file]
        return pictures[pair.mnist_index] if 0 <= pair.mnist_index < len(pictures) else np.zeros((0, 28), np.uint8)

    def _speech(self, pair: Pair, split: str) -> np.ndarray:
        return self._raw.recordings.get(pair.fsdd_file, np.zeros(0, np.int16))


class NoisyExamples(CleanExamples):
    """Examples with the noise of mmjax.data.sources.noise."""

    def __init__(self, raw: RawFiles):
        super().__init__(raw)
        train = [picture for pair in raw.pairs["train"] if (picture := super(NoisyExamples, self)._picture(pair)).size]
        if not train:
            raise UserError("no training picture can be read, so there are no principal components to fit")
        self._components = noise.PrincipalComponents.fit(np.stack(train))
        self._level = {name: noise.normalize_level(samples) for name, samples in raw.recordings.items()}
        # A recording that cannot be read is silent in the babble, so that it changes nothing else.
        silence = np.zeros(noise.LENGTH, np.float32)
        self._pools = {
            split: np.stack([self._level.get(name, silence) for name in sorted({pair.fsdd_file for pair in rows})])
            for split, rows in raw.pairs.items()
        }

    def _picture(self, pair: Pair) -> np.ndarray:
        picture = super()._picture(pair)
        return self._components.reduce(picture) if picture.size else picture

    def _speech(self, pair: Pair, split: str) -> np.ndarray:
        if pair.fsdd_file not in self._level:
            return super()._speech(pair, split)
        return noise.mix_noise(self._level[pair.fsdd_file], self._pools[split], pair.noise_seed)


def _read_recordings(read: Callable[[str], bytes], pairs: Pairs) -> dict[str, np.ndarray]:
    """The readable recordings of the pairs, by file name.

    The others are listed on standard error.
    """
    recordings, broken = {}, []
    for name in sorted({pair.fsdd_file for rows in pairs.values() for pair in rows}):
        try:
            samples = fsdd.decode(read(name))
        except OSError:
            samples = None
        if samples is None:
            broken.append(name)
        else:
            recordings[name] = samples
    if not recordings:
        raise UserError(f"none of the {len(broken)} recordings can be read, for example {broken[0]}")
    if broken:
        more = ", ..." if len(broken) > NAMED else ""
        print(f"{len(broken)} recordings cannot be read: {', '.join(broken[:NAMED])}{more}", file=sys.stderr)
    return recordings
