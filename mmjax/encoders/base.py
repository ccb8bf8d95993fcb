"""What every encoder is: a configuration that builds a module from one modality's arrays to tokens."""

import abc
from typing import Any, Protocol

import chz
import jax
from flax import nnx
from jaxtyping import Array, Bool

from mmjax.errors import UserError
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Tokens

Intermediates = dict[str, Any]


class EncoderModule(Protocol):
    """A built encoder."""

    def __call__(
        self, values: Array, mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        """Tokens of width D from the values and mask a `Batch` holds; a key turns dropout on."""
        ...


@chz.chz
class Encoder(abc.ABC):
    """Configuration of an encoder."""

    @abc.abstractmethod
    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> EncoderModule:
        """The module for a modality of that static shape. Raises UserError where it cannot read such a feature."""


def expect(encoder: Encoder, feature: Feature, *kinds: type) -> None:
    """Raise UserError unless the feature is of a kind the encoder reads."""
    if not isinstance(feature, kinds):
        able = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{type(encoder).__name__} encodes {able}, not {type(feature).__name__}; choose another encoder")


def expect_heads(key: str, width: int, heads: int) -> None:
    """Raise UserError unless the width is a multiple of the number of heads."""
    if heads < 1 or width % heads:
        raise UserError(f"{key}: a width of {width} cannot be split into {heads} heads; choose a divisor of it")
