"""Several runs of one program, advanced together: their trees stacked, and functions of one run mapped over all."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def stack(trees: Sequence[Any]) -> Any:
    """The trees of several runs as one whose leaves have a leading dimension; that of a single run as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """The trees that `stack` put together."""
    if count == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(count)]


def vmap_runs(function: Callable, count: int, in_axes: Any = 0) -> Callable:
    """A function of one run as that of `count` runs stacked; `in_axes` as in `jax.vmap`."""
    return function if count == 1 else jax.vmap(function, in_axes)
