"""Several runs of one program, advanced together by stacking and vmap."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def stack(trees: Sequence[Any]) -> Any:
    """Stacks the trees of several runs along a leading dimension; a single tree stays unchanged."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """The inverse of `stack`."""
    if count == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, index=index: leaf[index], tree) for index in range(count)]


def vmap_runs(function: Callable, count: int, in_axes: Any = 0) -> Callable:
    """A function of one run mapped over `count` stacked runs; `in_axes` as in `jax.vmap`."""
    return function if count == 1 else jax.vmap(function, in_axes)
