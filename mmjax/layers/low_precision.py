"""Matrix products in int8 or float8 for training, with qwix's scales and rounding."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmjax.errors import UserError
from mmjax.layers.attention import Attention
from mmjax.layers.linear import Contraction, Linear
from mmjax.layers.mlp import MLP, Experts
from mmjax.sharding.rules import reshard

Precision = Literal["int8", "float8"]
# What factors and what slopes are rounded to: as 8-bit floats, slopes need the range more than the digits (Micikevicius
# et al. 2022, "FP8 formats for deep learning").
KINDS = {"int8": (jnp.int8, jnp.int8), "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def quantize_matmuls(model: nnx.Module, precision: Precision) -> None:
    """Makes attention, MLPs and experts multiply by their parameters in 8 bits, in place.

    This covers the forward pass and the gradients of activations. Gradients of parameters stay in the compute dtype,
    because theirs are the long sums (Wortsman et al. 2023, "Stable and low-precision training for large-scale
    vision-language models"). Raises UserError where qwix is not installed.
    """
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise UserError(f'model.matmul_precision={precision} needs qwix: pip install "mmjax[quantize]"') from error
    for part in _parts(model):
        if isinstance(part, Attention | MLP):
            for each in vars(part).values():
                if isinstance(each, Linear):
                    each.contract = QuantizedMatmul(precision)
        elif isinstance(part, Experts):
            part.contract = QuantizedMatmul(precision)


@dataclasses.dataclass(frozen=True)
class QuantizedMatmul:
    """The matrix product of a `Linear` or of `Experts` with quantized operands; see `quantize_matmuls`.

    Dimensions are [shared, rows, contracted] in x and [shared, contracted, columns] in the kernel.
    """

    precision: Precision

    def __call__(
        self, x: Float[Array, "..."], kernel: Float[Array, "..."], contraction: Contraction, spec: PartitionSpec | None
    ) -> Float[Array, "..."]:
        return _product(self.precision, contraction, spec, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(
    precision: Precision, contraction: Contraction, spec: PartitionSpec | None, x: Array, kernel: Array
) -> Array:
    """x @ kernel, with one scale per row and per column."""
    kind, _ = KINDS[precision]
    return _rounded_product(x, _whole(kernel), (kind, kind), contraction, spec).astype(x.dtype)


def _forward(
    precision: Precision, contraction: Contraction, spec: PartitionSpec | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(precision, contraction, spec, x, kernel), (x, kernel)


def _backward(
    precision: Precision,
    contraction: Contraction,
    spec: PartitionSpec | None,
    kept: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    x, kernel = kept

    def exact(kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, contraction, out_sharding=spec)

    # The sharding of a parameter's gradient is that of the exact product, whose value is not computed.
    (of_kernel,) = jax.vjp(exact, kernel)[1](gradient)
    factor, of_slope = KINDS[precision]
    (contracted, _), (shared, _) = contraction
    columns = kernel.ndim - len(shared) - len(contracted)
    last = tuple(range(gradient.ndim - columns, gradient.ndim)), tuple(range(kernel.ndim - columns, kernel.ndim))
    back = (last, (shared, shared))
    of_x = _rounded_product(gradient, _whole(kernel), (of_slope, factor), back, jax.typeof(x).sharding.spec)
    return of_x.astype(x.dtype), of_kernel


_product.defvjp(_forward, _backward)


def _whole(kernel: Array) -> Array:
    """The kernel's values under a type without its gradient's sharding."""
    return reshard(kernel, PartitionSpec(*jax.typeof(kernel).sharding.spec.partitions))


def _rounded_product(
    left: Array, right: Array, kinds: tuple[Any, Any], contraction: Contraction, spec: PartitionSpec | None
) -> Array:
    """The float32 product of the factors quantized to two kinds of 8-bit numbers.

    Every entry of the dimensions that are not contracted has its own scale.
    """
    import qwix

    (of_left, of_right), (shared, _) = contraction
    rows, columns = left.ndim - len(of_left) - len(shared), right.ndim - len(of_right) - len(shared)
    first, second = (
        qwix.quantize(
            array.astype(jnp.float32), kind, channelwise_axes=tuple(i for i in range(array.ndim) if i not in contracted)
        )
        for array, kind, contracted in ((left, kinds[0], of_left), (right, kinds[1], of_right))
    )
    exact = jnp.int32 if first.qvalue.dtype == jnp.int8 else jnp.float32
    made = jax.lax.dot_general(
        first.qvalue, second.qvalue, contraction, preferred_element_type=exact, out_sharding=spec
    )
    of_rows = jax.lax.squeeze(first.scale, of_left)
    of_rows = jnp.expand_dims(of_rows, tuple(range(made.ndim - columns, made.ndim)))
    of_columns = jax.lax.squeeze(second.scale, of_right)
    of_columns = jnp.expand_dims(of_columns, tuple(range(len(shared), len(shared) + rows)))
    return made.astype(jnp.float32) * of_rows * of_columns


def _parts(module: nnx.Module) -> Iterator[nnx.Module]:
    yield module
    for value in vars(module).values():
        if isinstance(value, nnx.Module):
            yield from _parts(value)
