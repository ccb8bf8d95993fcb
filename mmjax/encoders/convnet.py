"""Convolutional network."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.layers.convnet import ConvTrunk, ConvTrunkModule
from mmjax.layers.linear import Linear
from mmjax.layers.patches import group_sequence, pad_to_multiple, reshape
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Image, Spectrogram, Tokens


@chz.chz
class ConvNet(ConvTrunk, Encoder):
    """ConvNeXt-like network over images or spectrograms (Liu et al. 2022).

    A strided stem, then stages that halve the resolution.
    """

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "ConvNetEncoder":
        return ConvNetEncoder(self, require_feature(self, feature, Image, Spectrogram), settings, rngs)


class ConvNetEncoder(nnx.Module):
    """Stem -> stages -> one token per cell of the last grid, or per row for a spectrogram.

    A spectrogram is a one-channel image, time down, bands across, with zeros for masked frames. A row is one token,
    because its cells are bands, which mean different things.
    """

    def __init__(self, config: ConvNet, feature: Image | Spectrogram, settings: Settings, rngs: nnx.Rngs):
        self.trunk = ConvTrunkModule(config, feature.channels if isinstance(feature, Image) else 1, settings, rngs)
        self.stride = config.stride
        self.seconds, columns = 0.0, 1
        if isinstance(feature, Spectrogram):
            self.seconds, columns = feature.seconds, -(-feature.bands // self.stride)
        shape, axes = (columns * config.widths[-1], settings.width), (None, "embed")
        self.project = Linear(shape, axes, rules=settings.rules, rngs=rngs)
        self.dtype, self.rules = settings.dtype, settings.rules

    def __call__(
        self, values: Array, mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        if mask is None:  # a picture
            x = values - 0.5
        else:
            # Padded, so that a row of the last grid covers `stride` whole frames and has a defined time.
            x, mask = pad_to_multiple(values, mask, self.stride)
            x = x[..., None]
        x, stages = self.trunk(x.astype(self.dtype), key)
        layers = {f"stage{index}": stage for index, stage in enumerate(stages)}
        _, rows, columns, channels = x.shape
        if mask is None:
            x = self.project(reshape(x, rows * columns, channels, rules=self.rules))
            return Tokens(x, jnp.ones_like(x[..., 0], dtype=bool)), layers
        x = self.project(reshape(x, rows, columns * channels, rules=self.rules))
        real = group_sequence(mask, self.stride, rules=self.rules).any(2)
        time = (jnp.arange(rows) + 0.5) * self.stride * self.seconds + jnp.zeros_like(x[..., 0], dtype=jnp.float32)
        return Tokens(x, real, time), layers
