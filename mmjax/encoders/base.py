"""The base class of encoders: a configuration that builds a module from arrays to tokens."""

import abc
from typing import Any, Protocol, TypeVar, runtime_checkable

import chz
import jax
from flax import nnx
from jaxtyping import Array

from mmjax.errors import UserError
from mmjax.layers.settings import Settings
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

    def packed_stride(self, feature: Feature) -> int | None:
        """The positions that a token stands for, where the module reads packed sequences; None: it does not.

        Its mask is then segment ids Int[R L] (see `Batch`). A multiple of the stride is where each sequence begins.
        """
        return None

    @abc.abstractmethod
    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> EncoderModule:
        """Builds the module for a modality; raises UserError for a feature it cannot read."""


def require_feature(
    encoder: Encoder, feature: Feature, kind: type[Kind], other: type[Other] | None = None
) -> Kind | Other:
    """The feature itself; raises UserError unless it is of a kind that the encoder reads."""
    if isinstance(feature, kind) or (other is not None and isinstance(feature, other)):
        return feature
    able = kind.__name__ if other is None else f"{kind.__name__} or {other.__name__}"
    raise UserError(f"{type(encoder).__name__} encodes {able}, not {type(feature).__name__}; choose another encoder")
