"""One training step: a pure function of the state and the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    accumulate: int = 1,
    ema: float | None = None,
) -> tuple[TrainState, Metrics]:
    """One gradient step on a global batch: (state, batch, the run's key) -> (state, averages to watch).

    The batch is worked through in `accumulate` parts whose gradients add up to those of the whole. Where the loss or
    the gradients are not finite, parameters and optimizer stay as they were and the step counts as skipped.
    """
    key = jax.random.fold_in(key, state.step)
    loss, metrics, grads = compute_gradients(state.model, batch, key, rules=rules, parts=accumulate, step=state.step)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
    model = _choose(good, optax.apply_updates(state.model, updates), state.model)
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
    )
    scalars = {
        "loss": loss,
        "gradient_norm": norm,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    one = jnp.ones((), jnp.float32)
    return state, metrics | {name: Average(scalar.astype(jnp.float32), one) for name, scalar in scalars.items()}


def compute_gradients(
    model: Multimodal, batch: Batch, key: jax.Array, *, rules: Rules, parts: int, step: jax.Array | None = None
) -> tuple[jax.Array, Metrics, Gradients]:
    """Loss, metrics and gradients of a batch, computed in `parts` one after another.

    Exact for losses that are averages over examples; a contrastive loss compares within each part.
    """

    def part_loss(model: Multimodal, part: Batch, key: jax.Array, weights) -> tuple[jax.Array, Metrics]:
        return model.loss(part, key, weights, step)

    gradient = jax.value_and_grad(part_loss, has_aux=True)
    if parts == 1:
        (loss, metrics), grads = gradient(model, batch, key, None)
        return loss, metrics, grads
    weights = model.weigh(batch)

    def add(total, part_and_key):
        (loss, metrics), grads = gradient(model, *part_and_key, weights)
        return jax.tree.map(jnp.add, total, (loss, metrics, grads)), None

    stacked = jax.tree.map(lambda array: _deal(array, parts, rules), batch)
    keys = jax.random.split(key, parts)
    first = jax.tree.map(lambda array: array[0], (stacked, keys))
    (loss, metrics), grads = jax.eval_shape(gradient, model, *first, weights)
    start = jax.tree.map(_zeros, (loss, metrics, grads))
    (loss, metrics, grads), _ = jax.lax.scan(add, start, (stacked, keys))
    return loss, metrics, grads


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype, out_sharding=shape.sharding)


def _deal(array: jax.Array, parts: int, rules: Rules) -> jax.Array:
    """[B ...] as [parts B/parts ...], every device dealing from its own rows: part p takes rows p, p + parts, ..."""
    rest = array.shape[1:]
    spec = rules.spec("batch", None, *[None] * len(rest))
    dealt = jax.lax.reshape(array, (array.shape[0] // parts, parts, *rest), out_sharding=spec)
    return jnp.swapaxes(dealt, 0, 1)


def _choose(good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
