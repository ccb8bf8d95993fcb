"""Convolutional network."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from mmjax.encoders.base import Encoder, Intermediates, expect
from mmjax.layers.conv import Conv
from mmjax.layers.convnet import ConvBlock
from mmjax.layers.linear import Linear
from mmjax.layers.norm import Norm
from mmjax.layers.patches import cut_sequence, fill_up, reshape
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.types import Feature, Image, Spectrum, Tokens


@chz.chz
class ConvNet(Encoder):
    """ConvNeXt-like network over pictures or spectra (Liu et al. 2022).

    A strided stem, then stages that halve the resolution.
    """

    stem: int = chz.field(default=4, doc="side and stride of the first convolution")
    widths: tuple[int, ...] = chz.field(default=(32, 64), doc="channels of each stage")
    depths: tuple[int, ...] = chz.field(default=(1, 1), doc="blocks of each stage")
    kernel: int = chz.field(default=5, doc="side of the depthwise convolutions")

    @chz.validate
    def _stages(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(f"widths={self.widths} and depths={self.depths} need one entry a stage each")

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "ConvNetEncoder":
        return ConvNetEncoder(self, expect(self, feature, Image, Spectrum), settings, rngs)


class ConvNetEncoder(nnx.Module):
    """Stem -> stages -> one token per place of the last grid; of a spectrum, one per row.

    A spectrum is a one-channel picture, time down, bands across, with zeros for masked frames. A row is one token: its
    places are bands, which mean different things.
    """

    def __init__(self, config: ConvNet, feature: Image | Spectrum, settings: Settings, rngs: nnx.Rngs):
        rules = settings.rules
        channels = feature.channels if isinstance(feature, Image) else 1
        self.reduce: nnx.List[Conv] = nnx.List()
        self.stages: nnx.List[Stack] = nnx.List()
        for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            side = config.stem if index == 0 else 2
            self.reduce.append(Conv(channels, width, side, stride=side, rules=rules, rngs=rngs))

            def make(rngs: nnx.Rngs, width: int = width) -> ConvBlock:
                return ConvBlock(width, config.kernel, rate=settings.dropout, rules=rules, rngs=rngs)

            self.stages.append(Stack(make, depth, remat=settings.remat, unroll=settings.unroll, rngs=rngs))
            channels = width
        self.norm = Norm(channels, rules=rules, rngs=rngs)
        self.stride = config.stem * 2 ** (len(config.widths) - 1)
        self.seconds, columns = 0.0, 1
        if isinstance(feature, Spectrum):
            self.seconds, columns = feature.seconds, -(-feature.bands // self.stride)
        self.project = Linear((columns * channels, settings.width), (None, "embed"), rules=rules, rngs=rngs)
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Array, mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        if mask is None:  # a picture
            x = values - 0.5
        else:
            # Filled up, so that a row of the last grid stands for `stride` whole frames and knows its time.
            x, mask = fill_up(values, mask, self.stride)
            x = x[..., None]
        x = x.astype(self.dtype)
        keys = [None] * len(self.stages) if key is None else jax.random.split(key, len(self.stages))
        layers = {}
        for index, (shrink, stage, stage_key) in enumerate(zip(self.reduce, self.stages, keys, strict=True)):
            x, layers[f"stage{index}"] = stage(shrink(x), None, key=stage_key)
        _, rows, columns, channels = x.shape
        x = self.norm(x)
        if mask is None:
            x = self.project(reshape(x, rows * columns, channels, rules=self.rules))
            return Tokens(x, jnp.ones_like(x[..., 0], dtype=bool)), layers
        x = self.project(reshape(x, rows, columns * channels, rules=self.rules))
        real = cut_sequence(mask, self.stride, rules=self.rules).any(2)
        time = (jnp.arange(rows) + 0.5) * self.stride * self.seconds + jnp.zeros_like(x[..., 0], dtype=jnp.float32)
        return Tokens(x, real, time), layers
