"""Products of 8-bit numbers in training, with the scales and the rounding of qwix."""

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

Products = Literal["int8", "float8"]
# What factors and what slopes are rounded to: as 8-bit floats, slopes need the range more than the digits (Micikevicius
# et al. 2022, "FP8 formats for deep learning").
KINDS = {"int8": (jnp.int8, jnp.int8), "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def lower_precision(model: nnx.Module, products: Products) -> None:
    """Let what attention, perceptrons and experts multiply with their parameters be 8-bit numbers, in place.

    In the forward pass and in the slopes of activations; slopes of parameters stay in the dtype of the computation, as
    theirs are the long sums (Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language
    models"). Raises UserError where qwix is not installed.
    """
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise UserError(f'model.products={products} needs qwix: pip install "mmjax[quantize]"') from error
    for part in _parts(model):
        if isinstance(part, Attention | MLP):
            for each in vars(part).values():
                if isinstance(each, Linear):
                    each.contract = Rounded(products)
        elif isinstance(part, Experts):
            part.contract = Rounded(products)


@dataclasses.dataclass(frozen=True)
class Rounded:
    """The product of a `Linear` or of `Experts`, of rounded factors; see `lower_precision`.

    Dimensions lie as [shared, rows, contracted] in x and as [shared, contracted, columns] in the kernel.
    """

    products: Products

    def __call__(
        self, x: Float[Array, "..."], kernel: Float[Array, "..."], contraction: Contraction, spec: PartitionSpec
    ) -> Float[Array, "..."]:
        return _product(self.products, contraction, spec, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(products: Products, contraction: Contraction, spec: PartitionSpec, x: Array, kernel: Array) -> Array:
    """x @ kernel, each row and each column by its own scale."""
    kind, _ = KINDS[products]
    return _rounded_product(x, _whole(kernel), (kind, kind), contraction, spec).astype(x.dtype)


def _forward(
    products: Products, contraction: Contraction, spec: PartitionSpec, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(products, contraction, spec, x, kernel), (x, kernel)


def _backward(
    products: Products, contraction: Contraction, spec: PartitionSpec, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = kept

    def exact(kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, contraction, out_sharding=spec)

    # The sharding of a parameter's slope is that which the exact product has, whose value nobody asks for.
    (of_kernel,) = jax.vjp(exact, kernel)[1](slope)
    factor, of_slope = KINDS[products]
    (contracted, _), (shared, _) = contraction
    columns = kernel.ndim - len(shared) - len(contracted)
    last = tuple(range(slope.ndim - columns, slope.ndim)), tuple(range(kernel.ndim - columns, kernel.ndim))
    back = (last, (shared, shared))
    of_x = _rounded_product(slope, _whole(kernel), (of_slope, factor), back, jax.typeof(x).sharding.spec)
    return of_x.astype(x.dtype), of_kernel


_product.defvjp(_forward, _backward)


def _whole(kernel: Array) -> Array:
    """Its numbers, without what its type says of its slope."""
    return jax.sharding.reshard(kernel, PartitionSpec(*jax.typeof(kernel).sharding.spec.partitions))


def _rounded_product(
    left: Array, right: Array, kinds: tuple[Any, Any], contraction: Contraction, spec: PartitionSpec
) -> Array:
    """The product, in float32, of what the factors are rounded to: 8-bit numbers of two kinds.

    Every entry of the dimensions that are not contracted has a scale of its own.
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
