"""The device groups of a collective, parsed from HLO text."""

import math
import re

import numpy as np
from jaxtyping import Int

# A mesh's axes with their sizes, the order of its devices where that is not that of their numbers, and the axes along
# which a group's devices differ.
MESH_GROUPS = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"


def _mesh_groups(axes: str, sizes: str | None, order: str | None, along: str) -> Int[np.ndarray, "G N"]:
    """Groups as libtpu writes them since 2026, with mesh axes."""
    lengths = {name: int(length) for name, length in re.findall(r"'(\w+)'=(\d+)", axes)}
    places = np.arange(math.prod(lengths.values()))
    if sizes:
        places = places.reshape([int(size) for size in sizes.split(",")])
        places = places.transpose([int(axis) for axis in order.split(",")]) if order else places
    grid = places.reshape(list(lengths.values()))
    inside = re.findall(r"'(\w+)'", along)
    outside = [name for name in lengths if name not in inside]
    names = list(lengths)
    grid = grid.transpose([names.index(name) for name in (*outside, *inside)])
    return grid.reshape(-1, math.prod(lengths[name] for name in inside))


def device_groups(attributes: str, partitions: int) -> Int[np.ndarray, "G N"]:
    """The groups in a collective's attributes, one per row; all devices together if it has none."""
    slices = re.search(r'_xla_megascale_target="\{([^}]*)\}', attributes)
    if slices:
        ranges = [part.split(":") for part in slices.group(1).split(",")]
        count = sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)
        return np.arange(count * partitions).reshape(count, partitions).T  # the program counts the devices of a slice
    listed = re.search(r"replica_groups=(?:\w+\.)?\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return np.array(
            [[int(place) for place in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        )
    named = re.search(MESH_GROUPS, attributes)
    if named:
        return _mesh_groups(*named.groups())
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        rows, columns, sizes, order = iota.groups()
        places = np.arange(int(rows) * int(columns)).reshape([int(size) for size in sizes.split(",")])
        if order:
            places = places.transpose([int(axis) for axis in order.split(",")])
        return places.reshape(int(rows), int(columns))
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        return np.array(
            [[int(place) for place in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", pairs.group(1))]
        )
    return np.arange(partitions)[None]
