"""What every output is: a configuration that builds a module with a loss and a prediction."""

import abc
from typing import Any, Protocol, TypeVar, runtime_checkable

import chz
import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.errors import UserError
from mmjax.layers.settings import Settings
from mmjax.types import Average, Batch, Feature, Fused, Metrics

Kind = TypeVar("Kind")


@runtime_checkable
class OutputModule(Protocol):
    """A built output."""

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """How much the examples of the batch weigh in the loss together: the `weight` its loss will have.

        Needs no forward pass.
        """
        ...

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        """The loss over examples whose target is present, as an average, and other averages worth watching.

        The loss itself becomes one of them, as "loss". `step` counts the training's steps before this one; None in an
        evaluation, where all that warms up is warm.
        """
        ...

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        """What the output says of each example, as arrays whose first dimension is B."""
        ...


@runtime_checkable
class AdversarialModule(OutputModule, Protocol):
    """A built output whose work an adversary may judge."""

    def generate(self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None) -> Any:
        """What it makes of a batch, as its adversary's `losses` reads it."""
        ...


@chz.chz
class Output(abc.ABC):
    """Configuration of an output. `weight` is its share of the total loss."""

    weight: float = chz.field(default=1.0, doc="factor of this loss in the total")

    @property
    def unimodal(self) -> tuple[str, ...]:
        """The modalities whose own tokens are read beside the fused ones, so that they must have encoders."""
        return ()

    @property
    def target_feature(self) -> str | None:
        """The feature that its predictions are: one it makes anew, or answers; None where they are none."""
        return None

    @property
    def hidden_modalities(self) -> tuple[str, ...]:
        """The modalities that the fusion it reads must not have seen: what it makes, unless more is said."""
        return () if self.target_feature is None else (self.target_feature,)

    @property
    def critic_hidden_modalities(self) -> tuple[str, ...]:
        """The modalities that the fused summary its critic reads must not have seen either: what the critic judges."""
        return ()

    @abc.abstractmethod
    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> OutputModule:
        """The module. Raises UserError where the features lack what it needs."""

    def build_critic(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> Any:
        """The adversary of the module, trained beside the model; None where it has none.

        Its `losses(attempt, condition, key, step)` gives both players' losses of what the module made. The module is a
        `AdversarialModule` then.
        """
        return None


def find_feature(key: str, name: str, features: dict[str, Feature], *kinds: type[Kind]) -> Kind:
    """The feature of that name. Raises UserError naming the ones that would do where it is not one of the kinds."""
    able = {other: feature for other, feature in features.items() if isinstance(feature, kinds)}
    if name not in able:
        raise UserError(f"{key}={name} is not among the features it can be: {', '.join(able) or 'none'}")
    return able[name]
