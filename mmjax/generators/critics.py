"""Critics: networks that score true and generated examples, patch by patch."""

import abc
import dataclasses
import functools
from typing import Protocol, runtime_checkable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.conv import Conv
from mmjax.layers.linear import Linear
from mmjax.layers.patches import patchify, reshape
from mmjax.layers.settings import Settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CriticOutput:
    """A critic's scores, in float32, and the activations of its layers."""

    scores: tuple[Float[Array, "B ..."], ...]
    features: tuple[Float[Array, "B ..."], ...]

    def mean(self) -> Float[Array, "B"]:
        """The mean score of each example, with equal weight for every network of the critic."""
        means = [score.reshape(score.shape[0], -1).mean(1) for score in self.scores]
        return sum(means[1:], means[0]) / len(means)


@runtime_checkable
class CriticModule(Protocol):
    """A built critic."""

    def __call__(self, x: Float[Array, "B ..."], condition: Float[Array, "B D"]) -> CriticOutput:
        """Scores of true or generated examples, given the fused summary."""
        ...


@chz.chz
class Critic(abc.ABC):
    """Configuration of a critic."""

    @abc.abstractmethod
    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> CriticModule:
        """The critic for grids with this many channels."""


@chz.chz
class PatchCritic(Critic):
    """Convolutional critic with a score per patch (Isola et al. 2017), without norms (Huang et al. 2024).

    The condition is added as the inner product of its projection with a patch's features (Miyato & Koyama 2018).
    """

    widths: tuple[int, ...] = chz.field(default=(32, 64, 128), doc="channels by level; each halves the sides")
    conditional: bool = chz.field(default=True, doc="whether the critic reads the fused features")

    @chz.validate
    def _some(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} needs a positive number of channels for each halving of the sides")

    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> "PatchCriticModule":
        return PatchCriticModule(self, channels, settings, rngs)


class PatchCriticModule(nnx.Module):
    """See `PatchCritic`."""

    def __init__(self, config: PatchCritic, channels: int, settings: Settings, rngs: nnx.Rngs):
        rules = settings.rules
        conv = functools.partial(Conv, rules=rules, rngs=rngs)
        before = (config.widths[0], *config.widths)
        self.stem = conv(channels, config.widths[0], 3)
        self.halve = nnx.List([Downsample(a, b, settings, rngs) for a, b in zip(before, config.widths, strict=False)])
        self.blocks = nnx.List([ResidualBlock(width, settings, rngs) for width in config.widths])
        last = config.widths[-1]
        self.score = conv(last, 1, 3, shard_inputs=True)
        project = functools.partial(Linear, (settings.width, last), ("embed", None), rules=rules, rngs=rngs)
        self.project = project() if config.conditional else None
        self.dtype = settings.dtype

    def __call__(self, x: Float[Array, "B H W C"], condition: Float[Array, "B D"]) -> CriticOutput:
        x = self.stem(x.astype(self.dtype))
        features = []
        for halve, block in zip(self.halve, self.blocks, strict=True):
            x = block(halve(_leak(x)))
            features.append(x)
        x = _leak(x)
        scores = self.score(x)[..., 0].astype(jnp.float32)
        if self.project is not None:
            asked = self.project(condition.astype(self.dtype))
            scores = scores + jnp.einsum("bhwc,bc->bhw", x, asked).astype(jnp.float32) * x.shape[-1] ** -0.5
        return CriticOutput((scores,), tuple(features))


class Downsample(nnx.Module):
    """Downsampling by two: four cells to one by a linear map (Liu et al. 2022); odd sides are padded.

    Gradient penalties differentiate it twice, which is fifteen times slower with a strided convolution on a CPU.
    """

    def __init__(self, before: int, after: int, settings: Settings, rngs: nnx.Rngs):
        self.linear = Linear((4 * before, after), (None, "embed"), bias=True, rules=settings.rules, rngs=rngs)
        self.rules = settings.rules

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        y = self.linear(patchify(x, 2, rules=self.rules))
        return reshape(y, x.shape[1] // 2, x.shape[2] // 2, y.shape[-1], rules=self.rules)


class ResidualBlock(nnx.Module):
    """x + conv(leak(conv(leak(x)))), its last convolution small at first (Fixup, Zhang et al. 2019)."""

    def __init__(self, width: int, settings: Settings, rngs: nnx.Rngs):
        conv = functools.partial(Conv, width, width, 3, rules=settings.rules, rngs=rngs)
        self.first, self.second = conv(), conv(scale=0.01)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + self.second(_leak(self.first(_leak(x))))


def _leak(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.leaky_relu(x, 0.2)
