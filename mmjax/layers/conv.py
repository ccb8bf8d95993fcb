"""Convolutions over two spatial dimensions; the kernel is gathered where it is used, the batch stays split."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import make_parameter, use
from mmjax.sharding.rules import Rules


class Conv(nnx.Module):
    """2-D convolution with bias, channels last, padded to keep ceil(size / stride).

    The kernel is stored split along its outputs, or, where these are few, along its inputs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        scale: float = 1.0,
        few_outputs: bool = False,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        init = jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal", (0, 1, 2), 3)
        self.axes = (None, None, "embed", None) if few_outputs else (None, None, None, "embed")
        self.kernel = make_parameter(init, (kernel, kernel, inputs, outputs), self.axes, rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (outputs,), (None,), rules=rules, rngs=rngs)
        self.stride, self.rules = stride, rules

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        kernel = use(self.kernel, self.axes, x.dtype, self.rules)
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.bias[...].astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """2-D convolution of every channel by its own kernel (stride 1, same padding), as a sum of shifted products.

    XLA fuses the sum into few passes, while its own grouped convolution is several times slower forward and backward
    on a CPU.
    """

    def __init__(self, channels: int, kernel: int, *, rules: Rules, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(1 / kernel)
        self.kernel = make_parameter(init, (kernel, kernel, channels), (None, None, "embed"), rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (channels,), (None,), rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        kernel = use(self.kernel, (None, None, "embed"), x.dtype, self.rules)
        size, (_, height, width, _) = kernel.shape[0], x.shape
        before, after = (size - 1) // 2, size // 2
        padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        y = self.bias[...].astype(x.dtype)
        for row in range(size):
            for column in range(size):
                y = y + padded[:, row : row + height, column : column + width] * kernel[row, column]
        return y
