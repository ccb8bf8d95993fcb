"""What every fusion is: a configuration of a module from all modalities' tokens to fused tokens and a summary."""

import abc
from typing import Any, Protocol, runtime_checkable

import chz
import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.settings import Settings
from mmjax.types import Tokens

Intermediates = dict[str, Any]


@runtime_checkable
class FusionModule(Protocol):
    """A built fusion."""

    def __call__(
        self, streams: dict[str, Tokens], key: jax.Array | None
    ) -> tuple[Tokens, Float[Array, "B D"], Intermediates]:
        """Fused tokens, their pooled summary, and what happened between; a key turns dropout on.

        A modality that an example lacks has a mask that is false everywhere, and must not change that example's result.
        """
        ...


@chz.chz
class Fusion(abc.ABC):
    """Configuration of a fusion."""

    @abc.abstractmethod
    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> FusionModule:
        """The module for these modalities, whose tokens all have width `settings.width`."""
