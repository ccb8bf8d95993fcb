"""The feed-forward half of a transformer block: a perceptron, or a sparse mixture of expert perceptrons."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Contract, Linear, contract, make_parameter, use
from mmjax.sharding.rules import Rules


class MLP(nnx.Module):
    """Two-layer perceptron with GELU (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, width: int, hidden: int, *, rules: Rules, rngs: nnx.Rngs):
        self.up = Linear((width, hidden), ("embed", "mlp"), rules=rules, rngs=rngs)
        self.down = Linear((hidden, width), ("mlp", "embed"), rules=rules, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.down(jax.nn.gelu(self.up(x)))


class Experts(nnx.Module):
    """E perceptrons with GELU, each over the `capacity` tokens of an example that want it most.

    y = sum over e of gate_e(x) f_e(x). A token whose gate for an expert is below those of `capacity` others of its
    example is not read by it (batch priority routing, Riquelme et al. 2021, within one example, so that no example's
    result depends on another's). Tokens are dealt out by one-hot products (Lepikhin et al. 2021, GShard), and sent to
    the devices that hold their experts.
    """

    def __init__(self, experts: int, width: int, hidden: int, *, rules: Rules, rngs: nnx.Rngs):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", 1, 2, batch_axis=0)
        self.axes = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
        make = functools.partial(make_parameter, init, matrix=(1, 1), rules=rules, rngs=rngs)
        self.up = make((experts, width, hidden), self.axes[0])
        self.down = make((experts, hidden, width), self.axes[1])
        self.rules = rules
        self.contract: Contract = contract

    def __call__(self, x: Float[Array, "B N D"], gates: Float[Array, "B N E"], capacity: int) -> Float[Array, "B N D"]:
        slots = _slots(gates, capacity)
        dealt = jnp.einsum("bnec,bnd->ebcd", slots.astype(x.dtype), x)
        sent = jax.sharding.reshard(dealt, self.rules.spec("expert", "group", None, None))
        hidden = jax.nn.gelu(self._multiply(sent, self.up, self.axes[0], "mlp"))
        answers = self._multiply(hidden, self.down, self.axes[1], None)
        answers = jax.sharding.reshard(answers, self.rules.spec(None, "batch", None, None))
        return jnp.einsum("bnec,ebcd->bnd", (slots * gates[..., None]).astype(x.dtype), answers)

    def _multiply(self, x: Array, parameter: nnx.Param, axes: tuple[str, ...], output: str | None) -> Array:
        """Every expert's product: [E B C D] with [E D F] as [E B C F]."""
        kernel = use(parameter, axes, x.dtype, self.rules)
        spec = self.rules.spec("expert", "group", None, output)
        return self.contract(x, kernel, (((3,), (1,)), ((0,), (0,))), spec)


def _slots(gates: Float[Array, "B N E"], capacity: int) -> Float[Array, "B N E C"]:
    """1 where token n has place c at expert e; places go to the largest gates first, and none to a gate of 0."""
    # A place has no gradient, and JAX cannot differentiate through the sorting of split arrays.
    place = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(gates), 1), 1)
    return jax.nn.one_hot(jnp.where(gates > 0, place, capacity), capacity, dtype=gates.dtype)


def expert_capacity(tokens: int, experts: int, chosen: int, slack: float) -> int:
    """Tokens that an expert reads of an example at most: `slack` times its even share of them."""
    return min(tokens, math.ceil(slack * chosen * tokens / experts))
