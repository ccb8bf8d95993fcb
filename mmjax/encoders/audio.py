"""Log-mel transformer."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.layers.attention import Block, Mask, check_heads
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.packed import has_segments, segment_positions, select_positions
from mmjax.layers.patches import group_sequence, pad_to_multiple, sliding_windows
from mmjax.layers.position import make_position
from mmjax.layers.settings import Settings
from mmjax.types import Feature, Spectrogram, Tokens

STEM_KERNEL = 5  # frames that a convolution of the stem sees


@chz.chz
class AudioTransformer(Encoder):
    """Transformer over log-mel frames that strided convolutions have downsampled.

    The convolutions are over time, with the bands as channels (after Radford et al. 2023).
    """

    convolutions: int = chz.field(default=2, doc="convolutions, each of which halves the number of frames")
    depth: int = chz.field(default=4, doc="transformer blocks")
    heads: int = chz.field(default=4, doc="attention heads")

    @chz.validate
    def _valid(self) -> None:
        if self.convolutions < 1:
            raise ValueError("convolutions must be 1 or more")

    def packed_stride(self, feature: Feature) -> int:
        return 2**self.convolutions

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "AudioEncoder":
        spectrum = require_feature(self, feature, Spectrogram)
        check_heads("AudioTransformer", self.heads, settings.width)
        return AudioEncoder(self, spectrum, settings, rngs)


class AudioEncoder(nnx.Module):
    """Strided convolutions with GELU -> learned position -> transformer -> norm.

    A token is real where any of its 2^convolutions frames is; masked frames count as zeros.
    """

    def __init__(self, config: AudioTransformer, feature: Spectrogram, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.stride = 2**config.convolutions
        self.count = -(-feature.frames // self.stride)
        self.convolutions: nnx.List[Linear] = nnx.List()
        for channels in (feature.bands, *[width] * (config.convolutions - 1)):
            shape, axes = (STEM_KERNEL, channels, width), (None, None, "embed")
            self.convolutions.append(Linear(shape, axes, inputs=2, bias=True, scale=2.0, rules=rules, rngs=rngs))
        self.position = make_position((self.count, width), rules=rules, rngs=rngs)
        self.stack = settings.stack(
            lambda rngs: Block(width, config.heads, rate=settings.dropout, rules=rules, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.seconds, self.dtype, self.rules = feature.seconds, settings.dtype, rules

    def __call__(
        self, values: Float[Array, "B T M"], mask: Mask, key: jax.Array | None
    ) -> tuple[Tokens, Intermediates]:
        x, mask = pad_to_multiple(values.astype(self.dtype), mask, self.stride)
        packed = has_segments(mask)
        for convolution in self.convolutions:
            x = jnp.where(mask[..., None] > 0, x, 0)
            x = jax.nn.gelu(convolution(sliding_windows(x, STEM_KERNEL, 2, mask if packed else None)))
            mask = group_sequence(mask, 2, rules=self.rules).max(2)
        x = x + select_positions(self.position, mask, self.dtype, self.rules)
        x, layers = self.stack(x, mask, key=key)
        places = segment_positions(mask) if packed else jnp.arange(x.shape[1])
        time = (places + 0.5) * self.stride * self.seconds + jnp.zeros_like(x[..., 0], jnp.float32)
        return Tokens(self.norm(x), mask > 0, time), {"layers": layers}
