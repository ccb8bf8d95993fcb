"""Contrastive losses over a global batch, sharded over devices and computed in chunks."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.sharding.rules import Rules, shard_map

# Rows of a device whose similarities to the whole batch are in memory at the same time.
CHUNK = 1024
# The logit of a partner that is not there.
NEVER = -1e9


def contrastive_losses(
    first: Float[Array, "B E"],
    second: Float[Array, "B E"],
    present: Bool[Array, "B"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    rules: Rules,
    rows: str | None = "batch",
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Every row's contrastive loss, and whether its own partner is the most similar one.

    With a bias, the sum over j of -log sigmoid(+-(scale a_i b_j + bias)), + where j = i (Zhai et al. 2023, algorithm
    1). Without, the mean of the cross-entropies of the softmax of scale a_i b_j over j and of that over i (Radford et
    al. 2021, figure 3). Rows that are not `present` are not compared with; their own results are undefined.

    `rows` names the logical dimension of B; None if every device holds all rows. The B x B similarities are never in
    memory at once: memory grows with B, not with its square, and the backward pass recomputes them.
    """
    given = (first, second, present, scale) if bias is None else (first, second, present, scale, bias)
    divided = rules.out_sharding(rows) if rows is not None else None
    axes = divided[0] if divided is not None else None
    if axes is None:
        return _local((), *given)
    split, spec, single = rules.spec(rows, None), rules.spec(rows), rules.spec()
    return shard_map(
        functools.partial(_local, (axes,) if isinstance(axes, str) else tuple(axes)),
        in_specs=(split, split, spec, single, single)[: len(given)],
        out_specs=(spec, spec),
    )(*given)


def _local(
    axes: tuple[str, ...],
    first: Float[Array, "b E"],
    second: Float[Array, "b E"],
    present: Bool[Array, "b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """The same for one device's rows, sharded along mesh axes."""
    everyone = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True) if axes else (lambda array: array)
    places = jnp.arange(len(first)) + (jax.lax.axis_index(axes) * len(first) if axes else 0)
    partners = everyone(present)
    by_row = functools.partial(_chunk, everyone(second), partners, scale, bias)
    losses, right = _in_chunks(by_row, first, places)
    if bias is None:
        by_column, _ = _in_chunks(functools.partial(_chunk, everyone(first), partners, scale, None), second, places)
        losses = (losses + by_column) / 2
    return losses, right


def _in_chunks(function, array: Float[Array, "b E"], places: Int[Array, "b"]):
    """The function on all rows, `CHUNK` at a time, rematerialised in the backward pass."""
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
    present: Bool[Array, "B"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    some: Float[Array, "c E"],
    places: Int[Array, "c"],
) -> tuple[Float[Array, "c"], Bool[Array, "c"]]:
    """Losses of some rows in one direction; `places` are the indices of their own partners."""
    similarities = some @ everyone.T
    best = jnp.where(present, similarities, -jnp.inf).argmax(1) == places
    own = places[:, None] == jnp.arange(len(everyone))
    if bias is not None:
        logits = scale * similarities + bias
        losses = -jax.nn.log_sigmoid(jnp.where(own, logits, -logits))
        return jnp.where(present, losses, 0).sum(1), best
    logits = jnp.where(present, scale * similarities, NEVER)
    return jax.nn.logsumexp(logits, 1) - jnp.where(own, logits, 0).sum(1), best
