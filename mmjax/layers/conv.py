"""Convolutions over time or space; the kernel is gathered before use, the batch stays sharded."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import gather_parameter, make_parameter
from mmjax.sharding.rules import Rules, reshard, shard_map

# One size an axis, (5,) over time, (5, 1) over rows and columns; a single number is the side of a square.
Sizes = int | tuple[int, ...]


class Conv(nnx.Module):
    """Convolution over one or two dimensions S, channels last.

    Padded to ceil(size / stride), or with `valid` not at all. The kernel is stored sharded along its outputs, or, with
    `shard_inputs`, along its inputs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sizes,
        *,
        stride: Sizes = 1,
        dilation: int = 1,
        valid: bool = False,
        bias: bool = True,
        scale: float = 1.0,
        shard_inputs: bool = False,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        sides = _square(kernel)
        count = len(sides)
        fan_in = tuple(range(count + 1))
        init = jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal", fan_in, count + 1)
        whole = (None,) * count
        self.axes = (*whole, "embed", None) if shard_inputs else (*whole, None, "embed")
        shape, matrix = (*sides, inputs, outputs), (count + 1, 1)
        self.kernel = make_parameter(init, shape, self.axes, matrix=matrix, rules=rules, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.bias = make_parameter(zeros, (outputs,), (None,), rules=rules, rngs=rngs) if bias else None
        self.padding = "VALID" if valid else "SAME"
        self.stride = (stride,) * count if isinstance(stride, int) else stride
        self.dilation, self.rules = (dilation,) * count, rules

    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *s D"]:
        kernel = gather_parameter(self.kernel, self.axes, x.dtype, self.rules)
        axes = "HW"[: len(self.stride)]
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            self.stride,
            self.padding,
            rhs_dilation=self.dilation,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """Depthwise convolution (stride 1, same padding), computed as a sum of shifted products.

    XLA fuses the sum into few passes. Its own grouped convolution is several times slower on a CPU.
    """

    def __init__(self, channels: int, kernel: Sizes, *, rules: Rules, rngs: nnx.Rngs):
        sides = _square(kernel)
        self.axes = (*[None] * len(sides), "embed")
        init = jax.nn.initializers.normal(math.prod(sides) ** -0.5)
        self.kernel = make_parameter(init, (*sides, channels), self.axes, decay=True, rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (channels,), (None,), rules=rules, rngs=rngs)
        self.rules = rules

    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        kernel = gather_parameter(self.kernel, self.axes, x.dtype, self.rules)
        sides, sizes = kernel.shape[:-1], x.shape[1:-1]
        padded = jnp.pad(x, ((0, 0), *(((side - 1) // 2, side // 2) for side in sides), (0, 0)))
        y = self.bias[...].astype(x.dtype)
        for place in itertools.product(*map(range, sides)):
            window = (slice(start, start + size) for start, size in zip(place, sizes, strict=True))
            y = y + padded[:, *window] * kernel[place]
        return y


class WeightNormConv(nnx.Module):
    """Grouped convolution over time with weight norm (Salimans & Kingma 2016).

    Its kernel at offset k is gain[k] v[k] / |v[k]| with a direction v, drawn with variance 4 / (kernel * channels) as
    wav2vec 2.0's. The stride is 1, and x padded so that it keeps its length.
    """

    def __init__(self, channels: int, kernel: int, groups: int, *, rules: Rules, rngs: nnx.Rngs):
        deviation = 2 / math.sqrt(kernel * channels)
        self.axes = (None, None, "embed")
        shape = (kernel, channels // groups, channels)
        init = jax.nn.initializers.normal(deviation)
        self.direction = make_parameter(init, shape, self.axes, rules=rules, rngs=rngs)
        norm = jax.nn.initializers.constant(deviation * math.sqrt(shape[1] * shape[2]))
        self.gain = make_parameter(norm, (kernel,), (None,), rules=rules, rngs=rngs)
        self.bias = make_parameter(jax.nn.initializers.zeros, (channels,), (None,), rules=rules, rngs=rngs)
        self.groups, self.rules = groups, rules

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        direction = gather_parameter(self.direction, self.axes, jnp.dtype("float32"), self.rules)
        norm = jnp.sqrt(jnp.square(direction).sum((1, 2)))
        kernel = (direction * (self.gain[...] / norm)[:, None, None]).astype(x.dtype)
        around = kernel.shape[0] // 2

        def local(x: Array, kernel: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (1,),
                [(around, kernel.shape[0] - 1 - around)],
                dimension_numbers=("NHC", "HIO", "NHC"),
                feature_group_count=self.groups,
            )

        # XLA would partition it itself, and on a mesh with an axis that does not split the batch its gradient is zero.
        split, whole = self.rules.spec("batch", None, None), self.rules.spec(None, None, None)
        y = shard_map(local, in_specs=(split, whole), out_specs=split)(reshard(x, split), kernel)
        return y + self.bias[...].astype(x.dtype)


def _square(kernel: Sizes) -> tuple[int, ...]:
    return (kernel, kernel) if isinstance(kernel, int) else kernel
