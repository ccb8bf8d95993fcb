"""Linear layers and embeddings; parameters are float32 and created sharded by their logical axes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from mmjax.errors import UserError
from mmjax.sharding.rules import Rules, reshard, shard_map, under_mesh

Axes = tuple[str | None, ...]
# Which dimensions of two arrays are summed over, and which they share, as `jax.lax.dot_general` takes it.
Contraction = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
Contract = Callable[[Array, Array, Contraction, PartitionSpec | None], Array]

# A parameter of fewer bytes is kept whole where a mesh does not divide it.
SMALL = 2**22


def make_parameter(
    init: Callable,
    shape: tuple[int, ...],
    axes: Axes,
    *,
    matrix: tuple[int, int] | None = None,
    decay: bool = False,
    maximum: float | None = None,
    rules: Rules,
    rngs: nnx.Rngs,
) -> nnx.Param:
    """A float32 parameter drawn by `init(key, shape, dtype)` directly into its sharding by the rules.

    Its metadata are for optimizers: `matrix` says how many of its last dimensions are inputs and how many outputs of a
    linear map (leading ones are separate maps); `decay` whether it has weight decay by default, as matrices do;
    `maximum` is the value that it is clipped to after every update, see `clip_parameters`.

    A small parameter stays unsharded where the mesh does not divide its storage dimension. Raises UserError for a large
    one, where the mesh does not divide any other dimension, and for sizes below 1.
    """
    if min(shape, default=1) < 1:
        raise UserError(f"a parameter would have shape {shape}; every size must be at least 1")
    spec = rules.spec(*axes)
    try:
        _check_divides(shape, axes, spec)
    except UserError:
        spec = rules.gathered_spec(*axes)
        if 4 * math.prod(shape) >= SMALL:
            raise
        _check_divides(shape, axes, spec)
    value = init(rngs.params(), shape, jnp.float32, out_sharding=under_mesh(spec))
    return nnx.Param(value, matrix=matrix, decay=decay or matrix is not None, maximum=maximum)


def clip_parameters(model: Any) -> Any:
    """The model with its parameters clipped to their `maximum`, where they have one."""

    def clip(leaf: Any) -> Any:
        maximum = leaf.get_metadata().get("maximum") if isinstance(leaf, nnx.Param) else None
        return leaf if maximum is None else leaf.replace(jnp.minimum(leaf[...], maximum))

    return jax.tree.map(clip, model, is_leaf=lambda node: isinstance(node, nnx.Param))


def _check_divides(shape: tuple[int, ...], axes: Axes, spec: PartitionSpec) -> None:
    """Raises UserError; JAX's own error would not name the logical dimension or the mesh axis."""
    parts = jax.sharding.get_abstract_mesh().shape
    for size, name, split in zip(shape, axes, spec, strict=True):
        for axis in (split,) if isinstance(split, str) else split or ():
            if size % parts.get(axis, 1):
                raise UserError(
                    f"mesh.{axis}={parts[axis]} does not divide dimension {name}={size} of a parameter of shape"
                    f" {shape}; choose a mesh.{axis} that divides it, or other rules"
                )
            size //= parts.get(axis, 1)


def gather_parameter(parameter: nnx.Param, axes: Axes, dtype: jnp.dtype, rules: Rules) -> Array:
    """The parameter as used in a computation: cast first, then gathered, so that less is sent."""
    return reshard(parameter[...].astype(dtype), rules.gathered_spec(*axes))


def gather_unreduced(parameter: nnx.Param, axes: Axes, dtype: jnp.dtype, rules: Rules) -> Array:
    """Like `gather_parameter`, for a product whose gradient each device computes from its own examples.

    The partial gradients are summed in two steps: along the storage axis first, where each device keeps only what it
    stores (a reduce-scatter), then over the other devices. XLA by itself sums the whole matrix over all of them at once
    and sends twice as much.
    """
    stored = rules.unreduced_spec(jax.typeof(parameter[...]).sharding.spec)
    used = rules.unreduced_spec(rules.gathered_spec(*axes))
    return reshard(reshard(parameter[...].astype(dtype), stored), used)


def contract(x: Array, kernel: Array, contraction: Contraction, spec: PartitionSpec | None) -> Array:
    """The product in the arguments' own dtype."""
    return jax.lax.dot_general(x, kernel, contraction, out_sharding=spec)


class Linear(nnx.Module):
    """y = x W + b over the last `inputs` dimensions of x.

    `shape` and `axes` name the kernel's input then output dimensions. The kernel is drawn with variance `scale` /
    fan-in (truncated normal).
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
        matrix = (inputs, len(shape) - inputs)
        self.kernel = make_parameter(init, shape, axes, matrix=matrix, rules=rules, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        # Biases are small: storing them split is not worth a gather.
        whole = (None,) * (len(shape) - inputs)
        self.bias = make_parameter(zeros, shape[inputs:], whole, rules=rules, rngs=rngs) if bias else None
        self.axes, self.inputs, self.rules = axes, inputs, rules
        self.contract: Contract = contract

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        leading, read = x.shape[: x.ndim - self.inputs], self.axes[: self.inputs]
        outputs = tuple(None if name == "embed" else name for name in self.axes[self.inputs :])
        kernel = gather_unreduced(self.kernel, self.axes, x.dtype, self.rules)
        # All rows in one dimension: with two, XLA's CPU backend takes nearly twice as long over a perceptron and its
        # gradients.
        spec = under_mesh(self.rules.gathered_spec("batch", *read))
        rows = jax.lax.reshape(x, (math.prod(leading), *x.shape[len(leading) :]), out_sharding=spec)
        contracted = (tuple(range(1, x.ndim - len(leading) + 1)), tuple(range(self.inputs)))
        y = self.product(rows, kernel, (contracted, ((), ())), self.rules.out_sharding("batch", *outputs))
        if self.bias is not None:
            y = y + reshard(self.bias[...].astype(x.dtype), self.rules.spec(*outputs))
        spec = self.rules.out_sharding("batch", *[None] * (len(leading) - 1), *outputs)
        return jax.lax.reshape(y, (*leading, *y.shape[1:]), out_sharding=spec)

    def product(
        self, rows: Float[Array, "N ..."], kernel: Array, contraction: Contraction, spec: PartitionSpec | None
    ) -> Float[Array, "N ..."]:
        """x W, with all rows of x in one dimension."""
        return self.contract(rows, kernel, contraction, spec)


class Embedding(nnx.Module):
    """Rows of a table by id (Int[B N] below `entries`), drawn from N(0, 1 / width).

    Instead of an id a position may have weights over all ids (Float[B N V]) and gets the weighted sum of the rows, so
    that texts can be interpolated.
    """

    def __init__(self, entries: int, width: int, *, rules: Rules, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(width**-0.5)
        self.table = make_parameter(init, (entries, width), ("vocab", "embed"), rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, ids: Int[Array, "B N"] | Float[Array, "B N V"], dtype: jnp.dtype) -> Float[Array, "B N D"]:
        table = reshard(self.table[...].astype(dtype), self.rules.spec(None, None))
        spec = self.rules.out_sharding("batch", None, None)
        if ids.ndim == 3:
            return jnp.einsum("bnv,vd->bnd", ids.astype(dtype), table, out_sharding=spec)
        return look_up(table, ids, self.rules)

    def logits(self, x: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """The products of x with the rows, as logits that are tied to the embeddings (Press & Wolf 2017)."""
        table, spec = gather_unreduced(self.table, ("vocab", "embed"), x.dtype, self.rules), self.rules.out_sharding
        # All rows in one dimension, as in `Linear`.
        rows = jax.lax.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]), out_sharding=spec("batch", None))
        y = contract(rows, table, (((1,), (1,)), ((), ())), spec("batch", "vocab"))
        return jax.lax.reshape(y, (*x.shape[:2], len(table)), out_sharding=spec("batch", None, "vocab"))


def look_up(table: Float[Array, "V D"], ids: Int[Array, "B ..."], rules: Rules) -> Float[Array, "B ... D"]:
    """Rows by id of a table that every device holds completely.

    Written with shard_map: the gradient of a gather under explicit sharding would first send the whole batch's to all
    devices.
    """
    rest = [None] * (ids.ndim - 1)
    split, whole = rules.spec("batch", *rest), rules.spec(None, None)
    rows = shard_map(
        lambda table, ids: table.at[ids].get(),
        in_specs=(whole, split),
        out_specs=rules.spec("batch", *rest, None),
    )
    return rows(table, reshard(ids, split))
