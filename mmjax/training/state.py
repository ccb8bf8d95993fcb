"""The train state: everything that a step reads and writes, other than the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.model import Multimodal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a training. Random keys come from the seed and the step, so they are not state.

    `ema` is an exponential moving average of the model, `skipped` counts steps whose loss or gradients were not finite,
    and `skipped_in_a_row` those since the last good one. `critics` are adversaries, trained beside the model.
    """

    # Int[Array, ""], Multimodal, ...: or, where only the tree matters, whatever JAX puts in the place of arrays.
    step: Any
    model: Any
    opt_state: Any
    ema: Any
    skipped: Any
    skipped_in_a_row: Any
    critics: Any = None
    critic_opt_state: Any = None

    @property
    def eval_model(self) -> Any:
        """The model that is evaluated: the moving average where there is one."""
        return self.model if self.ema is None else self.ema


def init_state(
    model: Multimodal,
    optimizer: optax.GradientTransformation,
    ema: bool,
    critics: Any = None,
    critic_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first step of a model, new or loaded, and of its critics if it has any."""
    zero = jnp.zeros((), jnp.int32)
    # The average starts as a copy: the model's own buffers are donated at every step.
    average = jax.tree.map(jnp.copy, model) if ema else None
    critic_opt_state = None if critic_optimizer is None else critic_optimizer.init(critics)
    return TrainState(zero, model, optimizer.init(model), average, zero, zero, critics, critic_opt_state)
