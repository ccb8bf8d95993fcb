"""The pairing tables of av_digits, read or generated: which image goes with which recording."""

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data.archives import read_compressed
from mmjax.data.sources import fsdd
from mmjax.errors import UserError

PAIRINGS = ("recording_disjoint", "speaker_disjoint")
VALIDATION_START = 55_000
TEST_SPEAKER, VALIDATION_SPEAKER = "theo", "yweweler"


class Pair(NamedTuple):
    """One row: an image (MNIST file and index), its digit, a recording, and the seed of the noise."""

    mnist_file: str
    mnist_index: int
    label: int
    fsdd_file: str
    noise_seed: int


Pairs = dict[str, list[Pair]]
"""Rows by split: "train", "validation", "test"."""


def read_digit_pairs(path: Path) -> Pairs:
    """The pairs of a gzipped CSV file with columns `split` (validation is "val") and those of `Pair`."""
    pairs: Pairs = {"train": [], "validation": [], "test": []}
    line = 1
    try:
        for row in csv.DictReader(io.StringIO(read_compressed(path).decode(), newline="")):
            line += 1
            if fsdd.parse_name(row["fsdd_file"]) is None or row["mnist_file"] not in ("train", "t10k"):
                raise ValueError(f"no files are called {row['fsdd_file']!r} and {row['mnist_file']!r}")
            numbers = [int(row[name]) for name in ("mnist_index", "label", "noise_seed")]
            if not all(0 <= number < 2**63 for number in numbers):
                raise ValueError(f"{numbers} are not numbers from 0 to 2^63")
            index, label, seed = numbers
            split = "validation" if row["split"] == "val" else row["split"]
            pairs[split].append(Pair(row["mnist_file"], index, label, row["fsdd_file"], seed))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of pairs (line {line}: {error})") from None
    if not all(pairs.values()):
        missing = ", ".join(split for split, rows in pairs.items() if not rows)
        raise UserError(f"{path} is not a table of pairs: it has no rows for {missing}")
    return pairs


def make_digit_pairs(pairing: str, train_labels: np.ndarray, test_labels: np.ndarray) -> Pairs:
    """The pairs by rule: within a split and digit, images in order take recordings by their hashes.

    Training images from 55,000 on are the validation split. The recordings of a digit are ordered by
    SHA-256("pairing:split:cycle:file"), again for every cycle; an example's noise seed is the first 32 bits of
    SHA-256("noise:split:index").
    """
    pictures = {
        "train": ("train", range(min(VALIDATION_START, len(train_labels))), train_labels),
        "validation": ("train", range(VALIDATION_START, len(train_labels)), train_labels),
        "test": ("t10k", range(len(test_labels)), test_labels),
    }
    pairs: Pairs = {}
    for split, (file, indices, labels) in pictures.items():
        short = "val" if split == "validation" else split
        pools: dict[int, list[str]] = {digit: [] for digit in range(10)}
        for name in fsdd.recording_names():
            if _split(pairing, name) == split:
                pools[int(name[0])].append(name)
        takers = {digit: _cycles(f"{pairing}:{short}", pool) for digit, pool in pools.items()}
        pairs[split] = [
            Pair(file, index, int(labels[index]), next(takers[int(labels[index])]), _bits(f"noise:{short}:{index}"))
            for index in indices
        ]
    if not all(pairs.values()):
        raise UserError(f"MNIST's files hold {len(train_labels)} and {len(test_labels)} labels, too few for each split")
    return pairs


def _split(pairing: str, name: str) -> str:
    """The split of a recording: by its index, or by its speaker.

    FSDD's own test recordings have indices 0 to 4.
    """
    _, speaker, index = fsdd.parse_name(name) or (0, "", 0)
    if pairing == "recording_disjoint":
        return "test" if index < 5 else "validation" if index < 10 else "train"
    return {TEST_SPEAKER: "test", VALIDATION_SPEAKER: "validation"}.get(speaker, "train")


def _cycles(prefix: str, pool: Iterable[str]) -> Iterator[str]:
    cycle = 0
    while True:
        yield from sorted(pool, key=lambda file: hashlib.sha256(f"{prefix}:{cycle}:{file}".encode()).digest())
        cycle += 1


def _bits(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
