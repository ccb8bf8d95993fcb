"""Which MNIST picture goes with which FSDD recording: the tables of av_digits, read or made by their rule."""

import csv
import gzip
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.data.sources import fsdd
from mmjax.errors import UserError

PAIRINGS = ("recording_disjoint", "speaker_disjoint")
VALIDATION_START = 55_000
TEST_SPEAKER, VALIDATION_SPEAKER = "theo", "yweweler"


class Pair(NamedTuple):
    """One row: a picture (which item of which of MNIST's files), its digit, a recording, the seed of the noise."""

    mnist_file: str
    mnist_index: int
    label: int
    fsdd_file: str
    noise_seed: int


Pairs = dict[str, list[Pair]]
"""Rows by split: "train", "validation", "test"."""


def read_pairs(path: Path) -> Pairs:
    """The pairs of a gzipped CSV file whose columns are `split` (validation is "val") and those of `Pair`."""
    pairs: Pairs = {"train": [], "validation": [], "test": []}
    line = 1
    try:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                line += 1
                if fsdd.describe(row["fsdd_file"]) is None or row["mnist_file"] not in ("train", "t10k"):
                    raise ValueError(f"no files are called {row['fsdd_file']!r} and {row['mnist_file']!r}")
                pairs["validation" if row["split"] == "val" else row["split"]].append(
                    Pair(
                        row["mnist_file"],
                        int(row["mnist_index"]),
                        int(row["label"]),
                        row["fsdd_file"],
                        int(row["noise_seed"]),
                    )
                )
    except (OSError, EOFError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no table of pairs (line {line}: {error})") from None
    if not all(pairs.values()):
        raise UserError(f"{path} has no rows for {', '.join(split for split, rows in pairs.items() if not rows)}")
    return pairs


def make_pairs(pairing: str, train_labels: np.ndarray, test_labels: np.ndarray) -> Pairs:
    """The pairs by their rule: within a split and digit, pictures in order take recordings by their hashes.

    Training pictures from 55,000 on are the validation split. The recordings of a digit are ordered by
    SHA-256("pairing:split:cycle:file"), anew for every cycle; an example's noise seed is the first 32 bits of
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
        for name in fsdd.names():
            if _split(pairing, name) == split:
                pools[int(name[0])].append(name)
        takers = {digit: _cycles(f"{pairing}:{short}", pool) for digit, pool in pools.items()}
        pairs[split] = [
            Pair(file, index, int(labels[index]), next(takers[int(labels[index])]), _bits(f"noise:{short}:{index}"))
            for index in indices
        ]
    return pairs


def _split(pairing: str, name: str) -> str:
    """The split a recording belongs to: by its index (FSDD's own test recordings are 0 to 4), or by its speaker."""
    _, speaker, index = fsdd.describe(name) or (0, "", 0)
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
