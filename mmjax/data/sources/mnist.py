"""MNIST's idx files (LeCun, Cortes & Burges 1998), as published."""

import zlib
from pathlib import Path

import numpy as np

from mmjax.data.archives import LARGEST
from mmjax.errors import UserError
from mmjax.files import read_regular

URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
PICTURES = {"train": "train-images-idx3-ubyte.gz", "t10k": "t10k-images-idx3-ubyte.gz"}
LABELS = {"train": "train-labels-idx1-ubyte.gz", "t10k": "t10k-labels-idx1-ubyte.gz"}


def read_pictures(path: Path) -> np.ndarray:
    """uint8[N 28 28] of an idx file; from a truncated file, its complete images."""
    return _read_idx(path, (28, 28))


def read_labels(path: Path) -> np.ndarray:
    """uint8[N] of an idx file, from 0 to 9."""
    labels = _read_idx(path, ())
    if (labels > 9).any():
        raise UserError(f"{path} holds the label {labels.max()}, which is not a digit: fetch MNIST's file again")
    return labels


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        # A decompressor by hand, because gzip.open gives nothing at all of a file that ends too early.
        data = zlib.decompressobj(wbits=31).decompress(read_regular(path), LARGEST)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it is one of MNIST's four files") from None
    except (OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch MNIST's file again") from None
    header = 4 + 4 * (1 + len(shape))
    expected = bytes([0, 0, 8, 1 + len(shape)]), np.array(shape, ">u4").tobytes()
    if len(data) < header or (data[:4], data[8:header]) != expected:
        raise UserError(f"{path} is not an IDX file of {'pictures of 28 x 28' if shape else 'labels'}")
    item = int(np.prod(shape, dtype=int))
    whole = (len(data) - header) // item
    return np.frombuffer(data, np.uint8, whole * item, header).reshape(-1, *shape)
