"""Every intermediate of a forward pass as one vector per example, by name: what probes read."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.layers.attention import masked_mean
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch


def intermediates(model: Multimodal, batch: Batch, *, rules: Rules) -> dict[str, Float[Array, "B _"]]:
    """What a forward pass without dropout computes on the way, in float32 and whole on every device.

    pooled                  the fused summary
    fused                   the mean of the fused tokens
    fusion/layers/K         the mean token after the fusion's block K, counted from 0
    fusion/NAME             whatever else the fusion says of every example, flattened: gates, votes, ...
    encoders/NAME           the mean token of a modality
    encoders/NAME/layers/K  the mean token after the encoder's block K
    encoders/NAME/layerK    the mean token after layer K of a recurrent encoder
    encoders/NAME/stageS/K  the mean over the grid after block K of stage S of a convolutional encoder, padding included

    Means are over real tokens, and zero where there is none. The fusion does not see what no output sees (see
    `Multimodal.without_modalities`). Under `jit` only what is read is computed.
    """
    streams, between = model.encode(batch, None)
    hidden = tuple(
        name
        for name in model.encoders
        if all(name in hidden_modalities for hidden_modalities in model.hidden_modalities.values())
    )
    fused, happened = model.fuse(streams, hidden, None)
    found = {"pooled": fused.pooled, "fused": masked_mean(fused.tokens.values, fused.tokens.mask)}
    found |= _vectors("fusion", happened, fused.tokens.mask)
    for name, tokens in streams.items():
        found[f"encoders/{name}"] = masked_mean(tokens.values, tokens.mask)
        found |= _vectors(f"encoders/{name}", between[name], tokens.mask)
    return rules.gather({name: vectors.astype(jnp.float32) for name, vectors in found.items()})


def names(model: Multimodal, batch: Batch, *, rules: Rules) -> list[str]:
    """The names of all intermediates; nothing is computed, and `batch` may be one of shapes."""
    return list(jax.eval_shape(functools.partial(intermediates, rules=rules), model, batch))


def _vectors(prefix: str, between: dict[str, Any], mask: Bool[Array, "B N"]) -> dict[str, Array]:
    """One vector per example of every intermediate of a part of the model, whose tokens' mask is given."""
    found: dict[str, Array] = {}
    for part, value in between.items():
        name = f"{prefix}/{part}"
        if part == "losses":
            continue  # means over the examples
        if part == "layers":
            # Streams [L B N D], whose tokens one after the other are those that the last block hands on.
            layers = jnp.concatenate(jax.tree.leaves(value), 2)
            found |= {f"{name}/{index}": masked_mean(layer, mask) for index, layer in enumerate(layers)}
        elif value.ndim == 5:
            there = mask.any(1)[:, None]
            found |= {f"{name}/{index}": jnp.where(there, grid.mean((1, 2)), 0) for index, grid in enumerate(value)}
        elif value.shape[:-1] == mask.shape:
            found[name] = masked_mean(value, mask)
        else:
            found[name] = jax.lax.collapse(value, 1)
    return found
