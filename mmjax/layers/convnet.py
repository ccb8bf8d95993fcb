"""ConvNeXt blocks over space or time, and a trunk: a strided stem and stages that halve the grid."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.conv import Conv, DepthwiseConv, Sizes
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.settings import Settings
from mmjax.layers.stack import Stack
from mmjax.sharding.rules import Rules


@chz.chz
class ConvTrunk:
    """Stages of ConvNeXt-like blocks (Liu et al. 2022)."""

    stem: int = chz.field(default=4, doc="side and stride of the first convolution")
    widths: tuple[int, ...] = chz.field(default=(32, 64), doc="channels of each stage")
    depths: tuple[int, ...] = chz.field(default=(1, 1), doc="blocks of each stage")
    kernel: int = chz.field(default=5, doc="side of the depthwise convolutions")

    @chz.validate
    def _stages(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(f"widths={self.widths} and depths={self.depths} need one entry a stage each")

    @property
    def stride(self) -> int:
        """Pixels per cell of the last grid, along each side."""
        return self.stem * 2 ** (len(self.widths) - 1)


class ConvBlock(nnx.Module):
    """Depthwise convolution, norm, MLP over channels, scaled residual (Liu et al. 2022, section 2).

    The convolution reads zeros at masked positions.
    """

    def __init__(self, width: int, kernel: Sizes, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        self.spatial = DepthwiseConv(width, kernel, rules=rules, rngs=rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.up = Linear((width, 4 * width), ("embed", "mlp"), bias=True, rules=rules, rngs=rngs)
        self.down = Linear((4 * width, width), ("mlp", "embed"), rules=rules, rngs=rngs)
        init = jax.nn.initializers.constant(0.1)
        self.gain = make_parameter(init, (width,), (None,), rules=rules, rngs=rngs)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B *S C"], mask: Bool[Array, "B *S"] | None, key: jax.Array | None
    ) -> Float[Array, "B *S C"]:
        seen = x if mask is None else jnp.where(mask[..., None], x, 0)
        y = self.down(jax.nn.gelu(self.up(self.norm(self.spatial(seen)))))
        return x + dropout(y * self.gain[...].astype(x.dtype), self.rate, key)


class ConvTrunkModule(nnx.Module):
    """[B H W C] -> the normalised grid [B H/s W/s D] of the last stage, s = stride.

    Sides that s does not divide are padded.
    """

    def __init__(self, config: ConvTrunk, channels: int, settings: Settings, rngs: nnx.Rngs):
        rules = settings.rules
        self.reduce: nnx.List[Conv] = nnx.List()
        self.stages: nnx.List[Stack] = nnx.List()
        for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            side = config.stem if index == 0 else 2
            self.reduce.append(Conv(channels, width, side, stride=side, rules=rules, rngs=rngs))

            def make(rngs: nnx.Rngs, width: int = width) -> ConvBlock:
                return ConvBlock(width, config.kernel, rate=settings.dropout, rules=rules, rngs=rngs)

            self.stages.append(settings.stack(make, depth, rngs))
            channels = width
        self.norm = RMSNorm(channels, rules=rules, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], key: jax.Array | None
    ) -> tuple[Float[Array, "B h w D"], list[Float[Array, "L B _ _ _"]]]:
        """The grid, and the output of every block by stage."""
        keys = [None] * len(self.stages) if key is None else jax.random.split(key, len(self.stages))
        layers = []
        for shrink, stage, stage_key in zip(self.reduce, self.stages, keys, strict=True):
            x, every = stage(shrink(x), None, key=stage_key)
            layers.append(every)
        return self.norm(x), layers
