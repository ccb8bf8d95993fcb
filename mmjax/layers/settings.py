"""Settings shared by all parts of one model."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from mmjax.layers.stack import Remat, Stack
from mmjax.sharding.rules import Rules


@dataclasses.dataclass(frozen=True)
class Settings:
    """Token width D, compute dtype, dropout rate, how stacks run, and the sharding rules."""

    width: int
    rules: Rules
    dtype: jnp.dtype = jnp.dtype("float32")
    dropout: float = 0.0
    remat: Remat = "none"
    unroll: bool = False

    def stack(self, make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Stack:
        """A stack of `depth` blocks that runs as these settings say."""
        return Stack(make, depth, remat=self.remat, unroll=self.unroll, rngs=rngs)
