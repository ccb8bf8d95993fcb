"""The base class of encoders: a configuration that builds a module from arrays to tokens."""

import abc
import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import chz
import jax
from flax import nnx
from jaxtyping import Array

from mmjax.errors import UserError
from mmjax.layers.attention import Block
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.linear import Linear
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.types import Feature, Tokens

Intermediates = dict[str, Any]
Kind = TypeVar("Kind")
Other = TypeVar("Other")


@runtime_checkable
class EncoderModule(Protocol):
    """A built encoder."""

    def __call__(self, values: Array, mask: Any, key: jax.Array | None) -> tuple[Tokens, Intermediates]:
        """Tokens of width D from a modality's values and mask (None for images) in a `Batch`.

        A key turns dropout on.
        """
        ...


@chz.chz
class Encoder(abc.ABC):
    """Configuration of an encoder."""

    width: int | None = chz.field(
        default=None, doc="the encoder's own width, whose tokens are projected to model.width; None: model.width"
    )

    def packed_stride(self, feature: Feature) -> int | None:
        """The positions that a token stands for, where the module reads packed sequences; None: it does not.

        Its mask is then segment ids Int[R L] (see `Batch`). A multiple of the stride is where each sequence begins.
        """
        return None

    @abc.abstractmethod
    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> EncoderModule:
        """Builds the module for a modality; raises UserError for a feature it cannot read."""


class ProjectedEncoder(nnx.Module):
    """An encoder of its own width, and a linear projection of its tokens to the model's."""

    def __init__(self, config: Encoder, width: int, feature: Feature, settings: Settings, rngs: nnx.Rngs):
        self.encoder = config.build(feature, dataclasses.replace(settings, width=width), rngs)
        axes, rules = (None, "embed"), settings.rules
        self.projection = Linear((width, settings.width), axes, bias=True, rules=rules, rngs=rngs)

    def __call__(self, values: Array, mask: Any, key: jax.Array | None) -> tuple[Tokens, Intermediates]:
        tokens, intermediates = self.encoder(values, mask, key)
        return dataclasses.replace(tokens, values=self.projection(tokens.values)), intermediates


def build_encoder(config: Encoder, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> EncoderModule:
    """The module for a modality, with a projection where the encoder's width is not the model's."""
    if config.width is None or config.width == settings.width:
        return config.build(feature, settings, rngs)
    return ProjectedEncoder(config, config.width, feature, settings, rngs)


def make_stack(options: BlockOptions, depth: int, heads: int, settings: Settings, rngs: nnx.Rngs) -> Stack:
    """A stack of transformer blocks of the settings' width."""
    rules, width, rate = settings.rules, settings.width, settings.dropout
    return settings.stack(lambda rngs: Block(width, heads, options, rate=rate, rules=rules, rngs=rngs), depth, rngs)


def require_feature(
    encoder: Encoder, feature: Feature, kind: type[Kind], other: type[Other] | None = None
) -> Kind | Other:
    """The feature itself; raises UserError unless it is of a kind that the encoder reads."""
    if isinstance(feature, kind) or (other is not None and isinstance(feature, other)):
        return feature
    able = kind.__name__ if other is None else f"{kind.__name__} or {other.__name__}"
    raise UserError(f"{type(encoder).__name__} encodes {able}, not {type(feature).__name__}; choose another encoder")
