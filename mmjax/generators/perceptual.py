"""Perceptual distance: by the features of a classifier."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.convnet import ConvTrunk, ConvTrunkModule
from mmjax.layers.norm import unit_norm
from mmjax.layers.settings import Settings


@chz.chz
class Perceptual(ConvTrunk):
    """Mean squared distance of unit features of a classifier's layers (Zhang et al. 2018, unweighted).

    The classifier is the trunk of a `ConvNet` with the same fields from an earlier run: `train.initialize` takes its
    parameters from that run (`rename` of encoders/NAME/trunk to outputs/NAME/judge), and an entry of `optimizer.rules`
    with `freeze` for "/judge/" keeps them fixed.
    """

    weight: float = chz.field(default=1.0, doc="weight of this distance, relative to the squared error")

    @chz.validate
    def _positive(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")

    def build(self, channels: int, settings: Settings, rngs: nnx.Rngs) -> "PerceptualDistance":
        """The distance for grids with this many channels."""
        return PerceptualDistance(self, channels, settings, rngs)


class PerceptualDistance(nnx.Module):
    """See `Perceptual`. Its parameters get no gradient."""

    def __init__(self, config: Perceptual, channels: int, settings: Settings, rngs: nnx.Rngs):
        self.judge = ConvTrunkModule(config, channels, settings, rngs)
        self.weight, self.dtype = config.weight, settings.dtype

    def __call__(self, true: Float[Array, "B H W C"], fake: Float[Array, "B H W C"]) -> Float[Array, "B"]:
        """weight * the distance of grids with values in [-1, 1]."""
        seen = [self._features(x) for x in (true, fake)]
        apart = [jnp.square(a - b).sum(-1).mean((0, 2, 3)) for a, b in zip(*seen, strict=True)]
        return self.weight * sum(apart[1:], apart[0]) / len(apart)

    def _features(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "L B _ _ _"]]:
        # An encoder of pictures gives its trunk values from -0.5 to 0.5.
        _, layers = jax.lax.stop_gradient(self.judge)((x / 2).astype(self.dtype), None)
        return [unit_norm(layer.astype(jnp.float32)) for layer in layers]
