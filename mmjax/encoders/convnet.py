"""Convolutional network."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, expect
from mmjax.layers.conv import Conv, DepthwiseConv
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import Norm, dropout
from mmjax.layers.patches import cut_sequence, reshape
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.sharding.rules import Rules
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


class ConvBlock(nnx.Module):
    """Depthwise convolution, norm, perceptron over channels, scaled residual (Liu et al. 2022, section 2)."""

    def __init__(self, width: int, kernel: int, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        self.spatial = DepthwiseConv(width, kernel, rules=rules, rngs=rngs)
        self.norm = Norm(width, rules=rules, rngs=rngs)
        self.up = Linear((width, 4 * width), ("embed", "mlp"), bias=True, rules=rules, rngs=rngs)
        self.down = Linear((4 * width, width), ("mlp", "embed"), rules=rules, rngs=rngs)
        init = jax.nn.initializers.constant(0.1)
        self.gain = make_parameter(init, (width,), (None,), rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Float[Array, "B H W C"], key: jax.Array | None) -> Float[Array, "B H W C"]:
        y = self.down(jax.nn.gelu(self.up(self.norm(self.spatial(x)))))
        return x + dropout(y * self.gain[...].astype(x.dtype), self.rate, key)


class ConvNetEncoder(nnx.Module):
    """Stem -> stages -> one token per place of the last grid.

    A spectrum is a one-channel picture, time down, bands across.
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
        self.project = Linear((channels, settings.width), (None, "embed"), rules=rules, rngs=rngs)
        self.stride = config.stem * 2 ** (len(config.widths) - 1)
        self.seconds = feature.seconds if isinstance(feature, Spectrum) else None
        self.dtype, self.rules = settings.dtype, rules

    def __call__(
        self, values: Array, mask: Bool[Array, "B N"] | None, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        # Filled up at the end, so that a place of the last grid stands for `stride` whole frames and knows its time.
        missing = -values.shape[1] % self.stride
        x = values - 0.5 if self.seconds is None else jnp.pad(values, ((0, 0), (0, missing), (0, 0)))[..., None]
        x = x.astype(self.dtype)
        keys = [None] * len(self.stages) if key is None else jax.random.split(key, len(self.stages))
        layers = {}
        for index, (shrink, stage, stage_key) in enumerate(zip(self.reduce, self.stages, keys, strict=True)):
            x, layers[f"stage{index}"] = stage(shrink(x), key=stage_key)
        rows, columns = x.shape[1:3]
        x = self.project(self.norm(reshape(x, rows * columns, x.shape[3], rules=self.rules)))
        if mask is None or self.seconds is None:
            return Tokens(x, jnp.ones_like(x[..., 0], dtype=bool)), layers
        frames = jnp.pad(mask, ((0, 0), (0, missing)))
        real = cut_sequence(frames, self.stride, rules=self.rules).any(2)
        time = (jnp.arange(rows) + 0.5) * self.stride * self.seconds
        time = jnp.repeat(time, columns) + jnp.zeros_like(x[..., 0], dtype=jnp.float32)
        return Tokens(x, jnp.repeat(real, columns, axis=1, out_sharding=self.rules.spec("batch", None)), time), layers
