"""Path names of the leaves of a tree, used by optimizer rules, checkpoints and initialisation."""

from typing import Any

import jax
from jax.tree_util import GetAttrKey, KeyPath


def path_name(path: KeyPath) -> str:
    """The name of a leaf from its key path, such as "model/encoders/image/blocks/up/kernel".

    Flax wraps a parameter in a `Variable` whose only child is called `value`; that last part is dropped. The names
    consist of attributes, keys and positions, so they are stable across versions of JAX and Flax.
    """
    if len(path) > 1 and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """All leaves of `tree` with their path names, in the tree's order.

    Raises ValueError if two leaves have the same name (a key that itself contains "/").
    """
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [name for name, _ in leaves]
    if len(set(names)) != len(names):
        raise ValueError(f"two leaves share a name: {sorted(name for name in set(names) if names.count(name) > 1)}")
    return leaves
