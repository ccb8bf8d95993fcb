"""Retrieval between two sets of embeddings: ranks of the counterparts and recall."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding.rules import Rules

RECALLS = (1, 5, 10)
# Queries that a device compares with a gallery at a time.
ROWS = 256
# Similarities held at a time: 64 MiB of float32, whatever the size of the gallery.
CHUNK_ELEMENTS = 1 << 24


def ranks(
    queries: Float[np.ndarray, "N D"],
    gallery: Float[np.ndarray, "N D"],
    query_present: Bool[np.ndarray, "N"] | None = None,
    gallery_present: Bool[np.ndarray, "N"] | None = None,
    ids: Any = None,
) -> Int[np.ndarray, "Q"]:
    """The rank, from 1, of each query's best match in the gallery, by inner product.

    Row i of `gallery` is a match of row i of `queries`; with `ids` (N strings or numbers, e.g. the sentences) so is
    every row of the same id, and the best of them counts. All present rows are in the gallery, even if their query is
    absent; queries without a present match are left out, so Q <= N.

    Ties count against the query: an item as similar as the match, or not comparable with it (NaN), ranks before it. So
    a model that gives everything the same embedding is last everywhere and not first.
    """
    present = np.ones(len(queries), bool)
    rows = np.flatnonzero(present if gallery_present is None else gallery_present)
    names = _numbers(ids, len(queries))
    # The rows of one id are adjacent in `order`.
    order = np.argsort(names[rows], kind="stable")
    starts, ends = (np.searchsorted(names[rows], names, side=side, sorter=order) for side in ("left", "right"))
    has_match = np.flatnonzero((present if query_present is None else query_present) & (ends > starts))
    # Equal vectors become one column, because a matrix product may round equal columns differently: ties stay ties.
    columns, column = np.unique(gallery[rows], axis=0, return_inverse=True)
    distinct = len(columns) == len(rows)
    columns = gallery[rows] if distinct else columns

    result = np.empty(len(has_match), np.int64)
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(rows)))
    for begin in range(0, len(has_match), chunk):
        asked = has_match[begin : begin + chunk]
        with np.errstate(invalid="ignore"):
            similarity = queries[asked] @ columns.T
        if not distinct:
            similarity = similarity[:, column]
        # Every match of every query asked, one after the other; `first` is where a query's own begin.
        matches = ends[asked] - starts[asked]
        first = np.cumsum(matches) - matches
        turn = np.arange(matches.sum()) - np.repeat(first, matches)
        matched = similarity[np.repeat(np.arange(len(asked)), matches), order[np.repeat(starts[asked], matches) + turn]]
        best = np.maximum.reduceat(matched, first)
        behind = np.count_nonzero(similarity < best[:, None], axis=1)
        matches_behind = np.add.reduceat(matched < np.repeat(best, matches), first, dtype=np.int64)
        result[begin : begin + chunk] = 1 + (len(rows) - behind) - (matches - matches_behind)
    return result


def sharded_ranks(
    queries: Float[np.ndarray, "N D"],
    gallery: Float[np.ndarray, "N D"],
    query_present: Bool[np.ndarray, "N"],
    gallery_present: Bool[np.ndarray, "N"],
    ids: Any = None,
    *,
    rules: Rules,
) -> Int[np.ndarray, "Q"]:
    """The same as `ranks`, computed on the current mesh.

    Every device has the whole gallery and ROWS queries at a time, so the result does not depend on the number of
    devices.
    """
    mesh = jax.sharding.get_mesh()
    chunk = ROWS * math.prod(mesh.shape[axis] for axis in rules.batch)
    # As in `ranks`, equal vectors are one column.
    columns, column = np.unique(gallery, axis=0, return_inverse=True)
    names = _numbers(ids, len(queries)).astype(np.int32)
    whole = jax.device_put((columns, column.astype(np.int32), gallery_present, names), rules.spec())
    rank = jax.jit(functools.partial(_rank, rules=rules))
    asked = np.flatnonzero(has_match(query_present, gallery_present, ids))
    found = []
    for begin in range(0, len(asked), chunk):
        rows = asked[begin : begin + chunk]
        padded = np.pad(rows, (0, chunk - len(rows)))
        placed = jax.device_put((queries[padded], names[padded]), rules.spec("batch"))
        found.append(jax.device_get(rank(*placed, *whole))[: len(rows)])
    return np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int64)


def has_match(
    query_present: Bool[np.ndarray, "N"], gallery_present: Bool[np.ndarray, "N"], ids: Any = None
) -> Bool[np.ndarray, "N"]:
    """The queries with a rank: those that are present and have a present match."""
    names = _numbers(ids, len(query_present))
    return query_present & np.isin(names, names[gallery_present])


def _numbers(ids: Any, count: int) -> Int[np.ndarray, "N"]:
    """An integer per id, equal for equal ids; without ids every row has its own."""
    return np.arange(count) if ids is None else np.unique(np.asarray(ids), return_inverse=True)[1]


def _rank(
    queries: Float[Array, "C D"],
    own: Int[Array, "C"],
    columns: Float[Array, "U D"],
    column: Int[Array, "N"],
    present: Bool[Array, "N"],
    names: Int[Array, "N"],
    *,
    rules: Rules,
) -> Int[Array, "C"]:
    """The rank of each query's best match among those with its `own` id; the same on every device."""
    by_pair = rules.spec("batch", None)
    similarity = jnp.einsum("cd,ud->cu", queries, columns, precision="highest", out_sharding=by_pair)
    similarity = similarity.at[:, column].get(out_sharding=by_pair)
    match = own[:, None] == names[None]
    best = jnp.where(match & present, similarity, -jnp.inf).max(1, keepdims=True)
    before = present & ~match & ~(similarity < best)
    return rules.gather(1 + before.sum(1, dtype=jnp.int32))


def retrieval_metrics(
    first: Float[np.ndarray, "N D"],
    second: Float[np.ndarray, "N D"],
    first_present: Bool[np.ndarray, "N"] | None = None,
    second_present: Bool[np.ndarray, "N"] | None = None,
    *,
    ids: Any = None,
    names: tuple[str, str] = ("first", "second"),
) -> dict[str, float]:
    """Recall at 1, 5, 10 and the median rank, in both directions, over the whole gallery (see `ranks`).

    Keys are "image_to_text_recall@1", ..., "text_to_image_median_rank" for `names` image and text; the values are NaN
    where no pair is present.
    """
    there = ranks(first, second, first_present, second_present, ids)
    back = ranks(second, first, second_present, first_present, ids)
    return rank_metrics(there, "{}_to_{}".format(*names)) | rank_metrics(back, "{1}_to_{0}".format(*names))


def rank_metrics(found: Int[np.ndarray, "Q"], direction: str) -> dict[str, float]:
    """Recall at 1, 5, 10 and the median of ranks, as "WAY_recall@1", ...; NaN without ranks."""
    metrics = {f"{direction}_recall@{k}": float((found <= k).mean()) if len(found) else float("nan") for k in RECALLS}
    return metrics | {f"{direction}_median_rank": float(np.median(found)) if len(found) else float("nan")}
