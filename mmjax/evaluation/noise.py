"""Noise in modalities, to measure how much of it a model tolerates."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.types import Batch, Feature


def corrupt(
    batch: Batch,
    number: Int[Array, ""],
    *,
    features: Mapping[str, Feature],
    amounts: Mapping[str, Float[Array, ""] | float],
) -> Batch:
    """The batch with noise in the modalities that `amounts` names: `amount` times as strong as the signal.

    Pictures, spectra, sounds and quantities get white Gaussian noise with `amount` times the standard deviation that
    the example's own real values have; of a text's tokens a share amount / (1 + amount) is replaced by random ones, of
    which none ends it. `number` is the batch's place in a pass over a split: an example's noise depends only on its
    own place in the pass, not on the size of batches or the number of devices.
    """
    values = dict(batch.values)
    for name, amount in amounts.items():
        x, there = batch.values[name], batch.present[name]
        size, spec = len(there), jax.typeof(there).sharding.spec
        places = jax.sharding.reshard(number * size + jnp.arange(size), spec)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(zlib.crc32(name.encode())), places)
        real = there[:, None] & batch.mask[name] if name in batch.mask else there
        real = jnp.broadcast_to(real.reshape(*real.shape, *[1] * (x.ndim - real.ndim)), x.shape)
        values[name] = jax.vmap(features[name].add_noise, (0, 0, None, 0))(x, real, amount, keys)
    return Batch(values, batch.mask, batch.present)
