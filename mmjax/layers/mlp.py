"""The feed-forward half of a transformer block: an MLP, or a sparse mixture of expert MLPs."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.block_options import ACTIVATIONS, BlockOptions
from mmjax.layers.linear import Contract, Linear, contract, gather_parameter, make_parameter
from mmjax.sharding.rules import Rules, reshard


class MLP(nnx.Module):
    """Two-layer perceptron, with GELU by default (Vaswani et al. 2017, section 3.3).

    Gated, its hidden layer is activation(x W) * (x V) (Shazeer 2020).
    """

    def __init__(
        self, width: int, hidden: int, options: BlockOptions = BlockOptions(), *, rules: Rules, rngs: nnx.Rngs
    ):
        make = functools.partial(Linear, bias=options.bias, rules=rules, rngs=rngs)
        self.up = make((width, hidden), ("embed", "mlp"))
        self.down = make((hidden, width), ("mlp", "embed"))
        self.gate = make((width, hidden), ("embed", "mlp")) if options.gated else None
        self.activation = ACTIVATIONS[options.activation]

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Experts(nnx.Module):
    """E expert MLPs with GELU, each applied to the `capacity` tokens of an example with the largest gates.

    y = sum over e of gate_e(x) f_e(x). A token whose gate for an expert is below those of `capacity` others of its
    example is dropped by it (batch priority routing, Riquelme et al. 2021, within one example, so that no example's
    result depends on another's). Tokens are dispatched by one-hot products (Lepikhin et al. 2021, GShard) to the
    devices that hold their experts.
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
        sent = reshard(dealt, self.rules.spec("expert", "group", None, None))
        hidden = jax.nn.gelu(self._multiply(sent, self.up, self.axes[0], "mlp"))
        answers = self._multiply(hidden, self.down, self.axes[1], None)
        answers = reshard(answers, self.rules.spec(None, "batch", None, None))
        return jnp.einsum("bnec,ebcd->bnd", (slots * gates[..., None]).astype(x.dtype), answers)

    def _multiply(self, x: Array, parameter: nnx.Param, axes: tuple[str, ...], output: str | None) -> Array:
        """Every expert's product: [E B C D] with [E D F] as [E B C F]."""
        kernel = gather_parameter(parameter, axes, x.dtype, self.rules)
        spec = self.rules.out_sharding("expert", "group", None, output)
        return self.contract(x, kernel, (((3,), (1,)), ((0,), (0,))), spec)


def _slots(gates: Float[Array, "B N E"], capacity: int) -> Float[Array, "B N E C"]:
    """1 where token n has slot c of expert e.

    Slots go to the largest gates first, and none to a gate of 0.
    """
    # A place has no gradient, and JAX cannot differentiate through the sorting of split arrays.
    place = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(gates), 1), 1)
    return jax.nn.one_hot(jnp.where(gates > 0, place, capacity), capacity, dtype=gates.dtype)


def expert_capacity(tokens: int, experts: int, top_k: int, capacity_factor: float) -> int:
    """The most tokens of an example that each expert processes: `capacity_factor` times an even share."""
    return min(tokens, math.ceil(capacity_factor * top_k * tokens / experts))
