"""Transformer over samples, as in wav2vec 2.0."""

import functools
import math

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.encoders.base import Encoder, Intermediates, make_stack, require_feature
from mmjax.errors import UserError
from mmjax.layers.attention import check_heads
from mmjax.layers.block_options import ACTIVATIONS, BlockOptions
from mmjax.layers.conv import Conv, WeightNormConv
from mmjax.layers.linear import Linear
from mmjax.layers.norm import InstanceNorm, LayerNorm, make_norm
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Tokens, Waveform

EPSILON = 1e-5  # of the convolutions' norms


@chz.chz
class WaveformTransformer(Encoder):
    """Transformer over samples that strided convolutions have downsampled, as wav2vec 2.0.

    Baevski et al. 2020. By default a token is made of 400 samples, one every 320: 25 and 20 ms at 16 kHz.
    """

    channels: int = chz.field(default=128, doc="channels of the convolutions; wav2vec 2.0 has 512")
    kernels: tuple[int, ...] = chz.field(default=(10, 3, 3, 3, 3, 2, 2), doc="kernel size of each convolution")
    strides: tuple[int, ...] = chz.field(default=(5, 2, 2, 2, 2, 2, 2), doc="stride of each convolution")
    conv_bias: bool = chz.field(default=False, doc="the convolutions add biases")
    conv_norm: bool = chz.field(
        default=False,
        doc="LayerNorm after every convolution; otherwise the first alone has a norm, of each channel over time",
    )
    position_kernel: int = chz.field(default=128, doc="tokens that the convolution for positions sees")
    position_groups: int = chz.field(default=16, doc="groups of channels of that convolution")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    block: BlockOptions = chz.field(default=BlockOptions(), doc="how the blocks are built")

    @chz.validate
    def _valid(self) -> None:
        if len(self.kernels) != len(self.strides) or not self.kernels:
            raise ValueError("kernels and strides must have one number for each convolution")
        for name in ("channels", "kernels", "strides", "position_kernel", "position_groups"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name} must be 1 or more")

    @property
    def window(self) -> int:
        """The samples that a token is made of."""
        window = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            window = (window - 1) * stride + kernel
        return window

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "WaveformEncoder":
        waveform = require_feature(self, feature, Waveform)
        check_heads("WaveformTransformer", self.heads, settings.width)
        if settings.width % self.position_groups:
            raise UserError(
                f"WaveformTransformer.position_groups={self.position_groups} does not divide "
                f"model.width={settings.width}; choose a divisor of it"
            )
        if waveform.samples < self.window:
            raise UserError(
                f"WaveformTransformer makes a token of {self.window} samples, and its input has {waveform.samples}; "
                "choose longer recordings"
            )
        return WaveformEncoder(self, waveform, settings, rngs)


class WaveformEncoder(nnx.Module):
    """Convolutions -> norm and projection -> convolution added as position -> transformer -> norm.

    Post-norm: the last norm comes before the transformer. A token is real where all samples that it is made of are;
    the first is where any sample is.
    """

    def __init__(self, config: WaveformTransformer, feature: Waveform, settings: Settings, rngs: nnx.Rngs):
        rules, width, channels, block = settings.rules, settings.width, config.channels, config.block
        make = functools.partial(Conv, valid=True, bias=config.conv_bias, scale=2.0, rules=rules, rngs=rngs)
        self.convolutions: nnx.List[Conv] = nnx.List()
        self.norms: nnx.List[InstanceNorm | LayerNorm] = nnx.List()
        for place, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
            self.convolutions.append(make(channels if place else 1, channels, (kernel,), stride=stride))
            if config.conv_norm:
                self.norms.append(LayerNorm(channels, epsilon=EPSILON, rules=rules, rngs=rngs))
            elif place == 0:
                self.norms.append(InstanceNorm(channels, epsilon=EPSILON, rules=rules, rngs=rngs))
        self.embed_norm = make_norm(block, channels, rules=rules, rngs=rngs)
        self.embed = Linear((channels, width), (None, "embed"), bias=True, rules=rules, rngs=rngs)
        self.position = WeightNormConv(width, config.position_kernel, config.position_groups, rules=rules, rngs=rngs)
        self.stack = make_stack(block, config.depth, config.heads, settings, rngs)
        self.norm = make_norm(block, width, rules=rules, rngs=rngs)
        self.activation, self.post_norm = ACTIVATIONS[block.activation], block.post_norm
        self.kernels, self.strides, self.window = config.kernels, config.strides, config.window
        self.rate, self.dtype = feature.rate, settings.dtype

    def __call__(
        self, values: Float[Array, "B T"], mask: Bool[Array, "B T"], key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x, mask = self._convolve(jnp.where(mask, values, 0).astype(self.dtype)[..., None], mask)
        x = jnp.where(mask[..., None], self.embed(self.embed_norm(x)), 0)
        x = x + self.activation(self.position(x))
        x, layers = self.stack(self.norm(x) if self.post_norm else x, mask, key=key)
        middle = jnp.arange(x.shape[1]) * math.prod(self.strides) + self.window / 2
        time = middle / self.rate + jnp.zeros_like(x[..., 0], jnp.float32)
        return Tokens(x if self.post_norm else self.norm(x), mask, time), {"layers": layers}

    def _convolve(
        self, x: Float[Array, "B T 1"], mask: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B N C"], Bool[Array, "B N"]]:
        for place, convolution in enumerate(self.convolutions):
            x = convolution(x)
            mask = _shrink(mask, self.kernels[place], self.strides[place])
            if place < len(self.norms):
                norm = self.norms[place]
                x = norm(x, mask) if isinstance(norm, InstanceNorm) else norm(x)
            x = self.activation(x)
        return x, mask


def _shrink(mask: Bool[Array, "B T"], kernel: int, stride: int) -> Bool[Array, "B N"]:
    """Which windows have real entries only; the first counts where it has any."""
    last = mask.shape[1] - kernel + 1
    windows = jnp.stack([mask[:, place : place + last : stride] for place in range(kernel)])
    return windows.all(0) | ((jnp.arange(windows.shape[2]) == 0) & windows.any(0))
