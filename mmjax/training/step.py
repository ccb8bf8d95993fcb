"""One training step: a pure function of the state and the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.layers.linear import clip_parameters
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.training.state import TrainState
from mmjax.types import Average, Batch, Metrics

Gradients = Any


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    critic_optimizer: optax.GradientTransformation | None = None,
    accumulate: int = 1,
    ema: float | None = None,
) -> tuple[TrainState, Metrics]:
    """One gradient step on a global batch: (state, batch, the run's key) -> (state, metrics).

    The batch is split into `accumulate` parts whose gradients add up to those of the whole. Critics, if there are any,
    step with the model, on its outputs before the step. Where the loss or the gradients of either are not finite, all
    parameters and optimizers keep their values and the step counts as skipped; the learning rate follows the number of
    steps, skipped ones included.
    """
    key = jax.random.fold_in(key, state.step)
    players = (state.model, state.critics)
    losses, metrics, grads = compute_gradients(players, batch, key, rules=rules, parts=accumulate, step=state.step)
    with jax.named_scope("optimizer"):
        return _apply(state, losses, metrics, grads, optimizer, critic_optimizer, ema)


def _apply(
    state: TrainState,
    losses: tuple[jax.Array, jax.Array],
    metrics: Metrics,
    grads: Gradients,
    optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation | None,
    ema: float | None,
) -> tuple[TrainState, Metrics]:
    """The state after the optimizer's update, or the old parameters where a gradient is not finite."""
    norms = optax.tree.norm(grads[0]), optax.tree.norm(grads[1])
    good = jnp.isfinite(sum(losses)) & jnp.isfinite(sum(norms))

    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads[0], state.opt_state, state.model, step=state.step)
    model = _choose(good, clip_parameters(optax.apply_updates(state.model, updates)), state.model)
    critics, critic_opt_state = state.critics, state.critic_opt_state
    if critic_optimizer is not None:
        update = optax.with_extra_args_support(critic_optimizer).update
        updates, moved_state = update(grads[1], critic_opt_state, critics, step=state.step)
        critics = _choose(good, optax.apply_updates(critics, updates), critics)
        critic_opt_state = _choose(good, moved_state, critic_opt_state)
    average = state.ema
    if ema is not None:
        # Early on the average is that of what there is, not of the first draw (as in Tensorflow's `num_updates`).
        decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        moved = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, model)
        average = _choose(good, moved, average)
    bad = 1 - good.astype(jnp.int32)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        model=model,
        opt_state=_choose(good, opt_state, state.opt_state),
        ema=average,
        skipped=state.skipped + bad,
        skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
        critics=critics,
        critic_opt_state=critic_opt_state,
    )
    scalars = {
        "loss": losses[0],
        "gradient_norm": norms[0],
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    if critic_optimizer is not None:
        scalars |= {"critic_loss": losses[1], "critic_gradient_norm": norms[1]}
    one = jnp.ones((), jnp.float32)
    whole: Metrics = {name: metric.summed() for name, metric in metrics.items()}
    return state, whole | {name: Average(scalar.astype(jnp.float32), one) for name, scalar in scalars.items()}


def compute_gradients(
    players: tuple[Multimodal, Any],
    batch: Batch,
    key: jax.Array,
    *,
    rules: Rules,
    parts: int,
    step: jax.Array | None = None,
) -> tuple[tuple[jax.Array, jax.Array], Metrics, Gradients]:
    """Losses, metrics and gradients of the model and its critics on a batch.

    The batch is split into `parts`, computed one after another. Exact for losses that are averages over examples; a
    contrastive loss compares within each part.
    """

    def part_loss(players: tuple[Multimodal, Any], part: Batch, key: jax.Array, weights: Any) -> tuple[jax.Array, Any]:
        model, critics = players
        loss, critic_loss, metrics = model.adversarial_loss(critics or {}, part, key, weights, step)
        return loss + critic_loss, ((loss, critic_loss), metrics)

    gradient = jax.grad(part_loss, has_aux=True)
    if parts == 1:
        grads, (losses, metrics) = gradient(players, batch, key, None)
        return losses, metrics, grads
    weights = players[0].loss_weights(batch)

    def add(total: Any, part_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(players, *part_and_key, weights)), None

    stacked = jax.tree.map(lambda array: _deal(array, parts, rules), batch)
    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda array: array[0], (stacked, keys))
    start = jax.tree.map(_zeros, jax.eval_shape(gradient, players, *first, weights))
    (grads, (losses, metrics)), _ = jax.lax.scan(add, start, (stacked, keys))
    return losses, metrics, grads


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype, out_sharding=shape.sharding)


def _deal(array: jax.Array, parts: int, rules: Rules) -> jax.Array:
    """[B ...] as [parts B/parts ...]: part p takes rows p, p + parts, ..., without communication."""
    rest = array.shape[1:]
    spec = rules.spec("batch", None, *[None] * len(rest))
    dealt = jax.lax.reshape(array, (array.shape[0] // parts, parts, *rest), out_sharding=spec)
    return jnp.swapaxes(dealt, 0, 1)


def _choose(good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
