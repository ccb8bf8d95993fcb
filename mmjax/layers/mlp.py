"""The feed-forward half of a transformer block."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Linear
from mmjax.sharding.rules import Rules


class MLP(nnx.Module):
    """Two-layer perceptron with GELU (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, width: int, hidden: int, *, rules: Rules, rngs: nnx.Rngs):
        self.up = Linear((width, hidden), ("embed", "mlp"), rules=rules, rngs=rngs)
        self.down = Linear((hidden, width), ("mlp", "embed"), rules=rules, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.down(jax.nn.gelu(self.up(x)))
