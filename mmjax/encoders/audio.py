"""Log-mel transformer."""

import math

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.encoders.base import Encoder, Intermediates, make_stack, require_feature
from mmjax.layers.attention import Mask, check_heads
from mmjax.layers.block_options import ACTIVATIONS, BlockOptions
from mmjax.layers.linear import Linear
from mmjax.layers.norm import make_norm
from mmjax.layers.packed import has_segments, segment_positions, select_positions
from mmjax.layers.patches import group_sequence, pad_to_multiple, sliding_windows
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Spectrogram, Tokens


@chz.chz
class AudioTransformer(Encoder):
    """Transformer over log-mel frames that strided convolutions have downsampled.

    The convolutions are over time, with the bands as channels (after Radford et al. 2023).
    """

    convolutions: int = chz.field(default=2, doc="convolutions, each of which halves the number of frames")
    kernel: int = chz.field(default=5, doc="frames that a convolution sees, an odd number")
    first_stride: int = chz.field(default=2, doc="frames from one to the next of the first convolution; Whisper's is 1")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    block: BlockOptions = chz.field(default=BlockOptions(), doc="how the blocks are built")

    @chz.validate
    def _valid(self) -> None:
        if self.convolutions < 1:
            raise ValueError("convolutions must be 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError("kernel must be an odd number")
        if self.first_stride < 1:
            raise ValueError("first_stride must be 1 or more")

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each convolution."""
        return (self.first_stride, *[2] * (self.convolutions - 1))

    def packed_stride(self, feature: Feature) -> int:
        return math.prod(self.strides)

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "AudioEncoder":
        spectrum = require_feature(self, feature, Spectrogram)
        check_heads("AudioTransformer", self.heads, settings.width)
        return AudioEncoder(self, spectrum, settings, rngs)


class AudioEncoder(nnx.Module):
    """Strided convolutions with the blocks' activation -> learned position -> transformer -> norm.

    A token is real where any of the frames that it stands for is; masked frames count as zeros.
    """

    def __init__(self, config: AudioTransformer, feature: Spectrogram, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.strides, self.stride, self.kernel = config.strides, math.prod(config.strides), config.kernel
        self.count = -(-feature.frames // self.stride)
        self.convolutions: nnx.List[Linear] = nnx.List()
        for channels in (feature.bands, *[width] * (config.convolutions - 1)):
            shape, axes = (self.kernel, channels, width), (None, None, "embed")
            self.convolutions.append(Linear(shape, axes, inputs=2, bias=True, scale=2.0, rules=rules, rngs=rngs))
        self.position = make_position((self.count, width), rules=rules, rngs=rngs)
        self.stack = make_stack(config.block, config.depth, config.heads, settings, rngs)
        self.norm = make_norm(config.block, width, rules=rules, rngs=rngs)
        self.activation = ACTIVATIONS[config.block.activation]
        self.seconds, self.dtype, self.rules = feature.seconds, settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B T M"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x, mask = pad_to_multiple(values.astype(self.dtype), mask, self.stride)
        packed = has_segments(mask)
        for convolution, stride in zip(self.convolutions, self.strides, strict=True):
            x = jnp.where(mask[..., None] > 0, x, 0)
            x = self.activation(convolution(sliding_windows(x, self.kernel, stride, mask if packed else None)))
            mask = group_sequence(mask, stride, rules=self.rules).max(2)
        x = x + select_positions(self.position, mask, self.dtype, self.rules)
        x, layers = self.stack(x, mask, key=key)
        places = segment_positions(mask) if packed else jnp.arange(x.shape[1])
        time = (places + 0.5) * self.stride * self.seconds + jnp.zeros_like(x[..., 0], jnp.float32)
        return Tokens(self.norm(x), mask > 0, time), {"layers": layers}
