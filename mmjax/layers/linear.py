"""Dense maps and embeddings: parameters in float32, born sharded by their logical axes, used in the dtype of the input."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.sharding.rules import Rules

Axes = tuple[str | None, ...]


def make_parameter(init: Callable, shape: tuple[int, ...], axes: Axes, *, rules: Rules, rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter drawn by `init(key, shape, dtype)` straight into the sharding its axes have in the rules."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=rules.spec(*axes)))


def use(parameter: nnx.Param, axes: Axes, dtype: jnp.dtype, rules: Rules) -> Array:
    """The parameter as it is computed with: cast first, then gathered over its storage axis, so that less is sent."""
    return jax.sharding.reshard(parameter[...].astype(dtype), rules.in_use(*axes))


class Linear(nnx.Module):
    """y = x W + b over the last `inputs` dimensions of x.

    `shape` and `axes` name the kernel's input then output dimensions. Initialised with variance 1 / fan-in (truncated normal).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: Axes,
        *,
        inputs: int = 1,
        bias: bool = False,
        scale: float = 1.0,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        fan_in = range(inputs)
        init = jax.nn.initializers.variance_scaling(
            scale, "fan_in", "truncated_normal", tuple(fan_in), tuple(range(inputs, len(shape)))
        )
        if scale == 0:
            init = jax.nn.initializers.zeros
        self.kernel = make_parameter(init, shape, axes, rules=rules, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        # Biases are small: storing them split is not worth a gather.
        whole = (None,) * (len(shape) - inputs)
        self.bias = make_parameter(zeros, shape[inputs:], whole, rules=rules, rngs=rngs) if bias else None
        self.axes, self.inputs, self.rules = axes, inputs, rules

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        leading = x.ndim - self.inputs
        contracted = (tuple(range(leading, x.ndim)), tuple(range(self.inputs)))
        outputs = tuple(None if name == "embed" else name for name in self.axes[self.inputs :])
        spec = self.rules.spec("batch", *[None] * (leading - 1), *outputs)
        kernel = use(self.kernel, self.axes, x.dtype, self.rules)
        y = jax.lax.dot_general(x, kernel, (contracted, ((), ())), out_sharding=spec)
        if self.bias is None:
            return y
        return y + jax.sharding.reshard(self.bias[...].astype(x.dtype), self.rules.spec(*outputs))


class Embedding(nnx.Module):
    """Rows of a table by id (ids Int[B N] below `entries`), drawn from N(0, 1 / width)."""

    def __init__(self, entries: int, width: int, *, rules: Rules, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(width**-0.5)
        self.table = make_parameter(init, (entries, width), ("vocab", "embed"), rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, ids: Int[Array, "B N"], dtype: jnp.dtype) -> Float[Array, "B N D"]:
        table = jax.sharding.reshard(self.table[...].astype(dtype), self.rules.spec(None, None))
        return table.at[ids].get(out_sharding=self.rules.spec("batch", None, None))
