"""Convolutional encoder and decoder with residual blocks: images to small feature grids and back."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.conv import Conv
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.patches import reshape
from mmjax.sharding.rules import Rules


class ResidualBlock(nnx.Module):
    """x + conv(gelu(norm(conv(gelu(norm(x)))))) (He et al. 2016, pre-activation).

    A condition modulates the second norm's output y as (1 + a) y + b (Perez et al. 2018); a and b are 0 at first.
    """

    def __init__(self, width: int, condition: int | None = None, *, rules: Rules, rngs: nnx.Rngs):
        norm, conv = functools.partial(RMSNorm, rules=rules, rngs=rngs), functools.partial(Conv, rules=rules, rngs=rngs)
        self.first_norm, self.first = norm(width), conv(width, width, 3)
        self.second_norm, self.second = norm(width), conv(width, width, 3, scale=0.1)
        film = functools.partial(Linear, axes=("embed", None, None), bias=True, scale=0.0, rules=rules, rngs=rngs)
        self.film = None if condition is None else film((condition, 2, width))

    def __call__(self, x: Float[Array, "B H W C"], condition: Float[Array, "B D"] | None) -> Float[Array, "B H W C"]:
        y = self.second_norm(self.first(jax.nn.gelu(self.first_norm(x))))
        if self.film is not None and condition is not None:
            scale, shift = jnp.unstack(self.film(condition).astype(y.dtype)[:, :, None, None], axis=1)
            y = y * (1 + scale) + shift
        return x + self.second(jax.nn.gelu(y))


class Encoder(nnx.Module):
    """[B H W C] -> [B H/s W/s O], s = 2^levels: each level halves the sides and has one block.

    H and W are multiples of s.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], outputs: int, *, rules: Rules, rngs: nnx.Rngs):
        conv = functools.partial(Conv, rules=rules, rngs=rngs)
        self.stem = conv(channels, widths[0], 3)
        before = (widths[0], *widths)
        self.halve = nnx.List([conv(a, b, 4, stride=2) for a, b in zip(before, widths, strict=False)])
        self.blocks = nnx.List([ResidualBlock(width, rules=rules, rngs=rngs) for width in widths])
        self.norm = RMSNorm(widths[-1], rules=rules, rngs=rngs)
        self.out = conv(widths[-1], outputs, 3, shard_inputs=True)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        x = self.stem(x)
        for halve, block in zip(self.halve, self.blocks, strict=True):
            x = block(halve(x), None)
        return self.out(jax.nn.gelu(self.norm(x)))


class Decoder(nnx.Module):
    """[B h w I] -> [B h s w s O]: each level has one block and doubles the sides."""

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        outputs: int,
        condition: int | None = None,
        *,
        rules: Rules,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(Conv, rules=rules, rngs=rngs)
        descending = widths[::-1]
        after = (*descending[1:], widths[0])
        self.stem = conv(inputs, descending[0], 3)
        self.blocks = nnx.List([ResidualBlock(width, condition, rules=rules, rngs=rngs) for width in descending])
        self.widen = nnx.List([conv(a, b, 3) for a, b in zip(descending, after, strict=True)])
        self.norm = RMSNorm(widths[0], rules=rules, rngs=rngs)
        self.out = conv(widths[0], outputs, 3, shard_inputs=True)
        self.rules = rules

    def __call__(self, x: Float[Array, "B h w I"], condition: Float[Array, "B D"] | None) -> Float[Array, "B H W O"]:
        x = self.stem(x)
        for block, widen in zip(self.blocks, self.widen, strict=True):
            x = widen(upsample(block(x, condition), self.rules))
        return self.out(jax.nn.gelu(self.norm(x)))


def upsample(x: Float[Array, "B H W C"], rules: Rules) -> Float[Array, "B 2*H 2*W C"]:
    """Nearest-neighbour upsampling by two."""
    _, height, width, channels = x.shape
    wide = jnp.stack([x, x], 3)
    return reshape(jnp.stack([wide, wide], 2), 2 * height, 2 * width, channels, rules=rules)
