"""The block of convolutional networks, over space or time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.conv import DepthwiseConv, Sizes
from mmjax.layers.linear import Linear, make_parameter
from mmjax.layers.norm import Norm, dropout
from mmjax.sharding.rules import Rules


class ConvBlock(nnx.Module):
    """Depthwise convolution, norm, perceptron over channels, scaled residual (Liu et al. 2022, section 2).

    The convolution sees zeros at places with a false mask.
    """

    def __init__(self, width: int, kernel: Sizes, *, rate: float, rules: Rules, rngs: nnx.Rngs):
        self.spatial = DepthwiseConv(width, kernel, rules=rules, rngs=rngs)
        self.norm = Norm(width, rules=rules, rngs=rngs)
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
