"""Packs the sequences of a padded batch into rows, first come first served, for comparison with the padded ones."""

import numpy as np

from mmjax.types import Batch, Packed


def pack(batch: Batch, name: str, row_length: int, rows: int, multiple: int = 1, parts: int = 1) -> Batch:
    """The batch with a feature packed; its sequences must fit."""
    values, mask = np.asarray(batch.values[name]), np.asarray(batch.mask[name])
    lengths = mask.sum(1) * np.asarray(batch.present[name])
    examples, own = len(lengths) // parts, rows // parts
    packed = np.zeros((rows, row_length, *values.shape[2:]), values.dtype)
    segments = np.zeros((rows, row_length), np.int32)
    ends = np.zeros(rows, int)
    where = np.zeros((2, len(lengths)), np.int32)
    for index, length in enumerate(lengths):
        part = index // examples
        row = next(row for row in range(part * own, (part + 1) * own) if ends[row] + length <= row_length)
        start = ends[row]
        packed[row, start : start + length] = values[index, :length]
        segments[row, start : start + length] = index + 1
        where[:, index] = row - part * own, start
        ends[row] = start + -(-length // multiple) * multiple
    about = Packed(*where, lengths.astype(np.int32), parts, rows, row_length, values.shape[1])
    values = {**batch.values, name: packed}
    return Batch(values, {**batch.mask, name: segments}, batch.present, {**batch.packed, name: about})
