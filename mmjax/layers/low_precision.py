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
from mmjax.layers.mlp import MLP

Products = Literal["int8", "float8"]
# What factors and what slopes are rounded to: as 8-bit floats, slopes need the range more than the digits (Micikevicius
# et al. 2022, "FP8 formats for deep learning").
KINDS = {"int8": (jnp.int8, jnp.int8), "float8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def lower_precision(model: nnx.Module, products: Products) -> None:
    """Let what attention and perceptrons multiply with their parameters be 8-bit numbers, in place.

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


@dataclasses.dataclass(frozen=True)
class Rounded:
    """The product of a `Linear`, of rounded factors; see `lower_precision`."""

    products: Products

    def __call__(
        self, x: Float[Array, "R ..."], kernel: Float[Array, "..."], contraction: Contraction, spec: PartitionSpec
    ) -> Float[Array, "R ..."]:
        return _product(self.products, contraction, spec, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(products: Products, contraction: Contraction, spec: PartitionSpec, x: Array, kernel: Array) -> Array:
    """x @ kernel, each row and each column by its own scale."""
    inputs = len(contraction[0][0])
    kernel = _whole(kernel)
    kind, _ = KINDS[products]
    left, right = _round(x, kind, range(1)), _round(kernel, kind, range(inputs, kernel.ndim))
    made = _multiply(left.qvalue, right.qvalue, contraction, spec)
    rows = left.scale.reshape(x.shape[0], *[1] * (made.ndim - 1))
    return (made * rows * right.scale.reshape(1, *made.shape[1:])).astype(x.dtype)


def _forward(
    products: Products, contraction: Contraction, spec: PartitionSpec, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(products, contraction, spec, x, kernel), (x, kernel)


def _backward(
    products: Products, contraction: Contraction, spec: PartitionSpec, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = kept

    def exact(kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, (contraction[0], ((), ())), out_sharding=spec)

    # The sharding of a parameter's slope is that which the exact product has, whose value nobody asks for.
    (of_kernel,) = jax.vjp(exact, kernel)[1](slope)
    inputs = len(contraction[0][0])
    factor, of_slope = KINDS[products]
    weights = _whole(kernel)
    left, right = _round(slope, of_slope, range(1)), _round(weights, factor, range(inputs))
    back = (tuple(range(1, slope.ndim)), tuple(range(inputs, weights.ndim)))
    made = _multiply(left.qvalue, right.qvalue, (back, ((), ())), jax.typeof(x).sharding.spec)
    rows = left.scale.reshape(x.shape[0], *[1] * (made.ndim - 1))
    return (made * rows * right.scale.reshape(1, *made.shape[1:])).astype(x.dtype), of_kernel


_product.defvjp(_forward, _backward)


def _whole(kernel: Array) -> Array:
    """Its numbers, without what its type says of its slope."""
    return jax.sharding.reshard(kernel, PartitionSpec(*jax.typeof(kernel).sharding.spec.partitions))


def _round(array: Array, kind: Any, own: range) -> Any:
    """8-bit numbers and their scales in float32, one for each entry of the dimensions `own`."""
    import qwix

    return qwix.quantize(array.astype(jnp.float32), kind, channelwise_axes=tuple(own))


def _multiply(left: Array, right: Array, contraction: Contraction, spec: PartitionSpec) -> Array:
    kind = jnp.int32 if left.dtype == jnp.int8 else jnp.float32
    made = jax.lax.dot_general(left, right, contraction, preferred_element_type=kind, out_sharding=spec)
    return made.astype(jnp.float32)


def _parts(module: nnx.Module) -> Iterator[nnx.Module]:
    yield module
    for value in vars(module).values():
        if isinstance(value, nnx.Module):
            yield from _parts(value)
