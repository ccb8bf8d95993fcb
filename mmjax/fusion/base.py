"""The base classes of fusion: tokens of all modalities -> fused tokens and a summary."""

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
        """Fused tokens, their pooled summary, and intermediates; a key turns dropout on.

        Intermediates may hold "losses": scalars by name that are added to the training loss, each a mean over the
        examples.

        A modality that an example lacks has a mask that is false everywhere, and must not change that example's result.
        """
        ...


@chz.chz
class Fusion(abc.ABC):
    """Configuration of a fusion."""

    @abc.abstractmethod
    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> FusionModule:
        """Builds the module for these modalities, whose tokens all have width `settings.width`."""


class PooledFusion(nnx.Module):
    """Combines one vector per modality, its mean token h_m, into the only fused token.

    Subclasses implement `combine`. h_m is zero where modality m is absent.
    """

    modalities: tuple[str, ...]

    @abc.abstractmethod
    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        """The summary of h1 to hM, of which `present` are present, and intermediates."""

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        means = jnp.stack([masked_mean(streams[name].values, streams[name].mask) for name in self.modalities], 1)
        present = jnp.stack([streams[name].mask.any(1) for name in self.modalities], 1)
        pooled, intermediates = self.combine(means, present, key)
        return Tokens(pooled[:, None], present.any(1, keepdims=True)), pooled, {"means": means, **intermediates}


@runtime_checkable
class StreamBlock(Protocol):
    """A block of a `StreamFusion`."""

    def __call__(self, streams: Streams, masks: Masks, key: jax.Array | None) -> Streams:
        """The streams after the block; a key turns dropout on."""
        ...

    def mixture(self, streams: Streams, masks: Masks) -> Float[Array, "B T T"]:
        """The share of every token, of all modalities in a row, in each token after the block.

        A token counts as itself and as what attention adds to it in the ratio 1 : 1, see `residual_shares`.
        """
        ...


class StreamFusion(nnx.Module):
    """Blocks over the token streams of all modalities, then a norm and attention pooling.

    A block is a `StreamBlock`. Tokens carry a learned embedding of their modality and, where they
    have a time, a sinusoidal embedding of the seconds on the example's clock.
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
        self.stack = settings.stack(make, depth, rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.pool = AttentionPool(width, heads, rules=rules, rngs=rngs)
        self.modalities = modalities

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        masks = {name: streams[name].mask for name in self.modalities}
        values, layers = self.stack(add_modality_embedding(streams, self.kind, self.modalities), masks, key=key)
        return *self.norm_and_pool(values, masks), {"layers": layers}

    def norm_and_pool(self, values: Streams, masks: Masks) -> tuple[Tokens, Float[Array, "B D"]]:
        """Fused tokens and their summary from the last block's streams."""
        x, mask = self.norm(concat_streams(values, self.modalities)), concat_streams(masks, self.modalities)
        return Tokens(x, mask), self.pool(x, mask)


def modality_embedding(modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> nnx.Param:
    """A learned embedding [M D] of the modality of a token."""
    init, shape = jax.nn.initializers.normal(0.02), (len(modalities), settings.width)
    return make_parameter(init, shape, (None, None), rules=settings.rules, rngs=rngs)


def add_modality_embedding(streams: dict[str, Tokens], kind: nnx.Param, modalities: tuple[str, ...]) -> Streams:
    """Token values plus the embeddings of their modality and, where known, their time."""
    marked = {}
    for index, name in enumerate(modalities):
        tokens = streams[name]
        x = tokens.values + kind[index].astype(tokens.values.dtype)
        marked[name] = x if tokens.time is None else x + time_embedding(tokens.time, x.shape[-1]).astype(x.dtype)
    return marked


def concat_streams(streams: dict[str, Array], modalities: tuple[str, ...]) -> Array:
    """The tokens, or the masks, of these modalities concatenated along the sequence."""
    return jnp.concatenate([streams[name] for name in modalities], 1)


def split_streams(x: Float[Array, "B N D"], like: Streams, modalities: tuple[str, ...]) -> Streams:
    """Splits a concatenated sequence back into streams shaped `like` these."""
    result, start = {}, 0
    for name in modalities:
        end = start + like[name].shape[1]
        result[name], start = x[:, start:end], end
    return result


def residual_shares(weights: Float[Array, "B T T"]) -> Float[Array, "B T T"]:
    """What passes beside attention and what passes through it, as shares."""
    return (jnp.eye(weights.shape[1]) + weights) / (1 + weights.sum(-1, keepdims=True))


def check_target(target: str | None, modalities: tuple[str, ...]) -> None:
    """Raises UserError where the target modality of a fusion has no encoder."""
    if target is not None and target not in modalities:
        raise UserError(f"model.fusion.target={target} is not among the encoders: {', '.join(modalities)}")
