"""What every fusion is: a configuration of a module from all modalities' tokens to fused tokens and a summary."""

import abc
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.errors import UserError
from mmjax.layers.attention import AttentionPool, masked_mean
from mmjax.layers.linear import make_parameter
from mmjax.layers.norm import RMSNorm
from mmjax.layers.position import time_embedding
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.types import Tokens

Intermediates = dict[str, Any]
# By modality, Float[B N D] and Bool[B N] with an N of its own each.
Streams = dict[str, Array]
Masks = dict[str, Array]


@runtime_checkable
class FusionModule(Protocol):
    """A built fusion."""

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        """Fused tokens, their pooled summary, and what happened between; a key turns dropout on.

        Under "losses" it may hold scalars for the training to keep small beside the outputs' losses, by name, each a
        mean over the examples.

        A modality that an example lacks has a mask that is false everywhere, and must not change that example's result.
        """
        ...


@chz.chz
class Fusion(abc.ABC):
    """Configuration of a fusion."""

    @abc.abstractmethod
    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> FusionModule:
        """The module for these modalities, whose tokens all have width `settings.width`."""


class PooledFusion(nnx.Module):
    """Makes one vector of one per modality, its mean token h_m; a subclass says how. It is the only fused token.

    h_m is zero where modality m is absent.
    """

    modalities: tuple[str, ...]

    @abc.abstractmethod
    def combine(
        self, means: Float[Array, "B M D"], there: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        """The summary of h1 to hM, of which `there` are, and what happened between."""

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        means = jnp.stack([masked_mean(streams[name].values, streams[name].mask) for name in self.modalities], 1)
        there = jnp.stack([streams[name].mask.any(1) for name in self.modalities], 1)
        pooled, between = self.combine(means, there, key)
        return Tokens(pooled[:, None], there.any(1, keepdims=True)), pooled, {"means": means, **between}


class StreamFusion(nnx.Module):
    """Blocks over the token streams of all modalities, then a norm, and pooling by attention from all tokens.

    A block maps `(streams, masks, key)` to streams. Tokens carry a learned embedding of their modality and, where they
    have a time, sines of the seconds on the example's clock.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        heads: int,
        modalities: tuple[str, ...],
        settings: Settings,
        rngs: nnx.Rngs,
    ):
        rules, width = settings.rules, settings.width
        self.kind = modality_embedding(modalities, settings, rngs)
        self.stack = Stack(make, depth, remat=settings.remat, unroll=settings.unroll, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.pool = AttentionPool(width, heads, rules=rules, rngs=rngs)
        self.modalities = modalities

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        masks = {name: streams[name].mask for name in self.modalities}
        values, layers = self.stack(add_modality_embedding(streams, self.kind, self.modalities), masks, key=key)
        return *self.finish(values, masks), {"layers": layers}

    def finish(self, values: Streams, masks: Masks) -> tuple[Tokens, Float[Array, "B D"]]:
        """Fused tokens and their summary, of the streams that the last block leaves."""
        x, mask = self.norm(concat_streams(values, self.modalities)), concat_streams(masks, self.modalities)
        return Tokens(x, mask), self.pool(x, mask)


def modality_embedding(modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> nnx.Param:
    """An embedding [M D] of what modality a token is of."""
    init, shape = jax.nn.initializers.normal(0.02), (len(modalities), settings.width)
    return make_parameter(init, shape, (None, None), rules=settings.rules, rngs=rngs)


def add_modality_embedding(streams: dict[str, Tokens], kind: nnx.Param, modalities: tuple[str, ...]) -> Streams:
    """Token values that say which modality they are of and, where that is known, when they are."""
    marked = {}
    for index, name in enumerate(modalities):
        tokens = streams[name]
        x = tokens.values + kind[index].astype(tokens.values.dtype)
        marked[name] = x if tokens.time is None else x + time_embedding(tokens.time, x.shape[-1]).astype(x.dtype)
    return marked


def concat_streams(streams: dict[str, Array], modalities: tuple[str, ...]) -> Array:
    """The tokens, or the masks, of these modalities one after the other."""
    return jnp.concatenate([streams[name] for name in modalities], 1)


def split_streams(x: Float[Array, "B N D"], like: Streams, modalities: tuple[str, ...]) -> Streams:
    """What `concat_streams` made of streams `like` these as streams again."""
    result, start = {}, 0
    for name in modalities:
        end = start + like[name].shape[1]
        result[name], start = x[:, start:end], end
    return result


def check_target(target: str | None, modalities: tuple[str, ...]) -> None:
    """Raise UserError where the modality that a fusion is to single out has no encoder."""
    if target is not None and target not in modalities:
        raise UserError(f"model.fusion.target={target} is not among the encoders: {', '.join(modalities)}")
