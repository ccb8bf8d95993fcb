"""The positions that every example of a split takes, counted once and then memory-mapped."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from mmjax.data import mirror
from mmjax.data.clean import BadInput, read_example
from mmjax.data.formats.index import QUIET_SECONDS
from mmjax.data.inputs import Input
from mmjax.data.sources.base import Records
from mmjax.files import read_regular

_FILE = "lengths.npy"


def feature_lengths(records: Records, name: str, input: Input, data_dir: str) -> Int32[np.ndarray, "E"]:
    """By example the most positions that an input, called `name`, gives (see `Input.count_positions`).

    0 where the value is absent or cannot be read. Kept under data_dir/lengths.
    """
    decides = [records.fingerprint, input.reads(name), *_identity(input)]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    folder = mirror.data_root(data_dir) / "lengths" / f"{name}-{digest}"
    mirror.make_once(folder, _FILE, lambda partial: np.save(partial / _FILE, _count(records, name, input)))
    return np.load(folder / _FILE, mmap_mode="r")


def _identity(input: Input) -> tuple[str, str]:
    """An input's settings, and the content of its tokenizer's file in the place of its path."""
    file = input.tokenizer_file
    if file is None:
        return repr(input), ""
    return repr(input).replace(repr(str(file)), ""), hashlib.sha256(read_regular(file)).hexdigest()


def _count(records: Records, name: str, input: Input) -> Int32[np.ndarray, "E"]:
    from tqdm import tqdm

    count = len(records)
    examples = tqdm(_examples(records, name, input), f"measuring {name}", count, unit=" examples", delay=QUIET_SECONDS)
    return np.fromiter((_positions(example, name, input) for example in examples), np.int32, count)


def _positions(example: dict[str, Any], name: str, input: Input) -> int:
    with contextlib.suppress(BadInput):
        value = input.take(example, name)
        return 0 if value is None else input.count_positions(value)
    return 0


def _examples(records: Records, name: str, input: Input) -> Iterator[dict[str, Any]]:
    """Each example, or what the input reads of it; empty where it cannot be read."""
    column = getattr(records, "column", None)
    if column is not None and input.feature.is_text:  # of pictures and recordings, columns hold names of files
        (field,) = input.reads(name)
        yield from ({field: value} for value in column(field))
        return
    for index in range(len(records)):
        try:
            yield read_example(records, index)
        except BadInput:
            yield {}
