"""Losses of all pairs of a global batch: each device has a part of the rows, and takes a few of them at a time."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding.rules import Rules

# Rows of a device whose similarities to the whole batch are in memory at the same time.
CHUNK = 1024
# The logit of a partner that is not there.
NEVER = -1e9


def pair_losses(
    first: Float[Array, "B E"],
    second: Float[Array, "B E"],
    there: Bool[Array, "B"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    rules: Rules,
    rows: str | None = "batch",
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Every row's loss, and whether its first half is more similar to its own second half than to all others.

    With a bias, the sum over j of -log sigmoid(+-(scale a_i b_j + bias)), + where j = i (Zhai et al. 2023, algorithm
    1). Without, the mean of the cross-entropies of the softmax of scale a_i b_j over j and of that over i (Radford et
    al. 2021, figure 3). Rows that are not `there` are nobody's partners, and what is said of them means nothing.

    `rows` names the dimension B; None if everything is whole on every device. The B x B similarities are never there
    together: a device's memory grows with B, not with its square, and the backward pass calculates them again.
    """
    given = (first, second, there, scale) if bias is None else (first, second, there, scale, bias)
    axes = rules.spec(rows)[0] if rows is not None else None
    if axes is None:
        return _local((), *given)
    split, spec, single = rules.spec(rows, None), rules.spec(rows), rules.spec()
    return jax.shard_map(
        functools.partial(_local, (axes,) if isinstance(axes, str) else tuple(axes)),
        in_specs=(split, split, spec, single, single)[: len(given)],
        out_specs=(spec, spec),
    )(*given)


def _local(
    axes: tuple[str, ...],
    first: Float[Array, "b E"],
    second: Float[Array, "b E"],
    there: Bool[Array, "b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """Those of one device's rows, which are parts of wholes along mesh axes."""
    everyone = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True) if axes else (lambda array: array)
    places = jnp.arange(len(first)) + (jax.lax.axis_index(axes) * len(first) if axes else 0)
    partners = everyone(there)
    by_row = functools.partial(_chunk, everyone(second), partners, scale, bias)
    losses, right = _in_chunks(by_row, first, places)
    if bias is None:
        by_column, _ = _in_chunks(functools.partial(_chunk, everyone(first), partners, scale, None), second, places)
        losses = (losses + by_column) / 2
    return losses, right


def _in_chunks(function, array: Float[Array, "b E"], places: Int[Array, "b"]):
    """The function of all rows, `CHUNK` at a time, none of whose intermediates is kept."""
    count = -(-len(array) // CHUNK)
    if count == 1:
        return function(array, places)
    missing = -len(array) % count
    padded = jnp.pad(array, ((0, missing), (0, 0))), jnp.pad(places, (0, missing))
    parts = jax.tree.map(lambda rows: rows.reshape(count, -1, *rows.shape[1:]), padded)
    _, found = jax.lax.scan(lambda _, part: (None, jax.checkpoint(function)(*part)), None, parts)
    return jax.tree.map(lambda rows: rows.reshape(-1)[: len(array)], found)


def _chunk(
    everyone: Float[Array, "B E"],
    there: Bool[Array, "B"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    some: Float[Array, "c E"],
    places: Int[Array, "c"],
) -> tuple[Float[Array, "c"], Bool[Array, "c"]]:
    """Losses of some rows, one way, against everyone; `places` are those of their own partners."""
    similarities = some @ everyone.T
    best = jnp.where(there, similarities, -jnp.inf).argmax(1) == places
    own = places[:, None] == jnp.arange(len(everyone))
    if bias is not None:
        logits = scale * similarities + bias
        losses = -jax.nn.log_sigmoid(jnp.where(own, logits, -logits))
        return jnp.where(there, losses, 0).sum(1), best
    logits = jnp.where(there, scale * similarities, NEVER)
    return jax.nn.logsumexp(logits, 1) - jnp.where(own, logits, 0).sum(1), best
