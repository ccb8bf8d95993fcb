"""A model on a held-out split, each example once: exact on any number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.batching.host_batch import HostBatch
from mmjax.data.loader import Loader
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import BatchResult, EvalResult, ResultCollector, evaluated_outputs, truth_features
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch
from mmjax.vmap_runs import unstack, vmap_runs

# By output: arrays by name, on the devices or on the host.
Predictions = dict[str, dict[str, Any]]


def evaluate_step(
    model: Multimodal, batch: Batch, key: jax.Array | None, *, rules: Rules, everything: bool
) -> BatchResult:
    """The result of a batch, whole on every device; without a key nothing is drawn at random.

    What no figure is computed from, such as images, is only made where `everything` is asked for.
    """
    _, metrics = model.loss(batch)
    evaluated = evaluated_outputs(model)
    predictions = {name: made for name, made in model.predict(batch, key).items() if everything or name in evaluated}
    truth = {
        name: (batch.values[target], batch.mask[target] & batch.present[target][:, None])
        for name, target in truth_features(model).items()
    }
    texts = {name for output in model.outputs.values() for name in output.aligned_texts}
    tokens = {name: jnp.where(batch.mask[name], batch.values[name], 0) for name in sorted(texts)}
    return BatchResult(*rules.gather((metrics, predictions, truth, batch.present, tokens)))


class Evaluator:
    """Evaluates models on the splits of one data set; compiles its step once.

    Of a split there are `examples` evenly spread ones, all by default. Where `count` is more than 1, the models given
    are so many stacked (see `mmjax.vmap_runs`) and evaluated together.
    """

    def __init__(self, context: EvalContext, *, count: int = 1, examples: int | None = None):
        self._context, self._count, self._examples = context, count, examples
        step = functools.partial(evaluate_step, rules=context.rules)
        self._steps = {
            everything: jax.jit(vmap_runs(functools.partial(step, everything=everything), count, (0, None, None)))
            for everything in (False, True)
        }
        self._loaders: dict[str, Loader] = {}

    def evaluate(
        self,
        model: Multimodal,
        split: str | None = None,
        on_batch: Callable[[HostBatch], None] | None = None,
        *,
        seed: int | None = None,
        loader: Loader | None = None,
        change: Callable[[Batch, Any], Batch] | None = None,
    ) -> list[EvalResult]:
        """The result of every model on a split, the context's by default, or on another loader's batches.

        `change(batch, number)` replaces each batch on the devices, the one of that number. `on_batch` is told of every
        batch: what could not be read of it, for one. With a `seed` outputs draw at random, as texts are written at a
        temperature; without, each gives what is most probable.
        """
        collectors = [ResultCollector(model, self._context.data.inputs) for _ in range(self._count)]
        loader = loader or self._loader(split or self._context.split)
        for host, results in self._predict(model, loader, loader.steps, False, seed, change):
            if on_batch is not None:
                on_batch(host)
            for collector, result in zip(collectors, results, strict=True):
                collector.add(host.ids, result)
        return [collector.result() for collector in collectors]

    def first(self, model: Multimodal, split: str) -> tuple[HostBatch, *tuple[Predictions, ...]]:
        """The first batch of a split with all predictions of every model, for looking at."""
        host, results = next(self._predict(model, self._loader(split), 1, True, None))
        return host, *(result.predictions for result in results)

    def _loader(self, split: str) -> Loader:
        if split not in self._loaders:
            self._loaders[split] = self._context.loader(split, examples=self._examples)
        return self._loaders[split]

    def _predict(
        self,
        model: Multimodal,
        loader: Loader,
        steps: int,
        everything: bool,
        seed: int | None,
        change: Callable[[Batch, Any], Batch] | None = None,
    ) -> Iterator[tuple[HostBatch, list[BatchResult]]]:
        """Batch by batch: what the host knows, and every model's result, on the host."""
        step = self._steps[everything]
        with self._context.prefetch(loader, steps) as feed:
            for number, placed in enumerate(feed):
                key = None if seed is None else jax.random.fold_in(jax.random.key(seed), number)
                batch = placed.batch if change is None else change(placed.batch, np.int32(number))
                yield placed.host, unstack(jax.device_get(step(model, batch, key)), self._count)
