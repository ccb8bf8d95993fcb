"""What every part of one model is built with."""

import dataclasses

import jax.numpy as jnp

from mmjax.layers.stack import Remat
from mmjax.sharding.rules import Rules


@dataclasses.dataclass(frozen=True)
class Settings:
    """Width D of the tokens between rooms, compute dtype, dropout rate, how stacks run, and the sharding rules."""

    width: int
    rules: Rules
    dtype: jnp.dtype = jnp.dtype("float32")
    dropout: float = 0.0
    remat: Remat = "none"
    unroll: bool = False
