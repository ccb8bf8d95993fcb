"""What every encoder is: a configuration that builds a module from one modality's arrays to tokens."""

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
        """Tokens of width D from the values and mask (None for images) a `Batch` holds; a key turns dropout on."""
        ...


@chz.chz
class Encoder(abc.ABC):
    """Configuration of an encoder."""

    @abc.abstractmethod
    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> EncoderModule:
        """The module for a modality of that static shape. Raises UserError where it cannot read such a feature."""


def expect(encoder: Encoder, feature: Feature, kind: type[Kind], other: type[Other] | None = None) -> Kind | Other:
    """The feature itself. Raises UserError unless it is of a kind (or the other) that the encoder reads."""
    if isinstance(feature, kind) or (other is not None and isinstance(feature, other)):
        return feature
    able = kind.__name__ if other is None else f"{kind.__name__} or {other.__name__}"
    raise UserError(f"{type(encoder).__name__} encodes {able}, not {type(feature).__name__}; choose another encoder")
