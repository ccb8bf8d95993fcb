"""A convolutional network over time, conditioned on a vector."""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.convnet import ConvBlock
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.settings import Settings


class TemporalConvNet(nnx.Module):
    """Conditioned 1D ConvNeXt: x [B T I], summary [B D] -> [B T O].

    Linear maps of both inputs are added, then come blocks over time, a norm and a linear map. `scale` is the initial
    variance of the last map, as in `Linear`. Masked entries of x count as zeros; the output there is undefined.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        kernel: int,
        settings: Settings,
        rngs: nnx.Rngs,
        *,
        scale: float = 1.0,
    ):
        rules, width = settings.rules, settings.width
        linear = functools.partial(Linear, rules=rules, rngs=rngs)
        self.into = linear((inputs, width), (None, "embed"), bias=True)
        self.condition = linear((width, width), ("embed", None))

        def make(rngs: nnx.Rngs) -> ConvBlock:
            return ConvBlock(width, (kernel,), rate=0.0, rules=rules, rngs=rngs)

        self.stack = settings.stack(make, depth, rngs)
        self.norm = RMSNorm(width, rules=rules, rngs=rngs)
        self.out = linear((width, outputs), ("embed", None), bias=True, scale=scale)

    def __call__(
        self, x: Float[Array, "B T I"], mask: Bool[Array, "B T"], summary: Float[Array, "B D"]
    ) -> Float[Array, "B T O"]:
        x = jnp.where(mask[..., None], x, 0)
        x = self.into(x) + self.condition(summary.astype(x.dtype))[:, None]
        return self.out(self.norm(self.stack(x, mask)[0]))
