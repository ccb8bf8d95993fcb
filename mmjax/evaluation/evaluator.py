"""A model on a held-out split, each example once: exact on any number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chz
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.device_batches import DevicePrefetcher, rows_of
from mmjax.data.loader import Data, HostBatch, Loader
from mmjax.evaluation.eval_result import JUDGED, EvalResult, Evaluated, ResultCollector, targets_of
from mmjax.heads.contrast import ContrastHead
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.types import Batch
from mmjax.vmap_runs import unstack, vmap_runs

# By output: arrays by name, on the devices or, for who judges them, on the host.
Predictions = dict[str, dict[str, Any]]


def evaluate_step(
    model: Multimodal, batch: Batch, key: jax.Array | None, *, rules: Rules, everything: bool
) -> Evaluated:
    """The answers to a batch, without chance if there is no key; whole on every device.

    What no figure is computed from, such as pictures, is only made where `everything` is asked for.
    """
    _, metrics = model.loss(batch)
    said = model.predict(batch, key)
    judged = {name for name, output in model.outputs.items() if isinstance(output, JUDGED)}
    predictions = {name: made for name, made in said.items() if everything or name in judged}
    truth = {
        name: (batch.values[target], batch.mask[target] & batch.present[target][:, None])
        for name, target in targets_of(model).items()
    }
    heads = [output for output in model.outputs.values() if isinstance(output, ContrastHead)]
    tokens = {name: jnp.where(batch.mask[name], batch.values[name], 0) for head in heads for name in head.texts}
    return Evaluated(*rules.gather((metrics, predictions, truth, batch.present, tokens)))


class Evaluator:
    """Evaluates models on the splits of one data set; compiles its step once.

    `data` is bound and `sharding` is how a batch lies on the mesh, which is the current one whenever this is called.
    Of a split there are `examples` evenly spread ones, all by default.
    Where `count` is more than 1, the models given are so many stacked (see `mmjax.vmap_runs`) and evaluated together.
    """

    def __init__(
        self,
        data: Data,
        data_dir: str,
        batch_size: int,
        *,
        sharding: NamedSharding,
        rules: Rules,
        count: int = 1,
        examples: int | None = None,
    ):
        # Starting a process takes as long as a short pass.
        self.data = chz.replace(data, workers=0)
        self.data_dir, self.batch_size, self.sharding = data_dir, batch_size, sharding
        self._count, self._examples = count, examples
        self._steps = {
            everything: jax.jit(
                vmap_runs(functools.partial(evaluate_step, rules=rules, everything=everything), count, (0, None, None))
            )
            for everything in (False, True)
        }
        self._loaders: dict[str, Loader] = {}

    def evaluate(
        self,
        model: Multimodal,
        split: str,
        on_batch: Callable[[HostBatch], None] | None = None,
        *,
        seed: int | None = None,
        loader: Loader | None = None,
        change: Callable[[Batch, Any], Batch] | None = None,
    ) -> list[EvalResult]:
        """What every model did on a whole split, or on what another loader of it gives.

        `change(batch, number)` is what is asked about in place of a batch on the devices, the one of that number.
        `on_batch` is told of every batch: what could not be read of it, for one. With a `seed` outputs answer with
        chance, as texts are written at a temperature; without, each gives what is most probable.
        """
        judges = [ResultCollector(model, self.data.inputs) for _ in range(self._count)]
        loader = loader or self.loader(split)
        for host, results in self._predict(model, loader, loader.steps, False, seed, change):
            if on_batch is not None:
                on_batch(host)
            for judge, answers in zip(judges, results, strict=True):
                judge.add(host.ids, answers)
        return [judge.result() for judge in judges]

    def first(self, model: Multimodal, split: str) -> tuple[HostBatch, *tuple[Predictions, ...]]:
        """The first batch of a split with everything that every model makes of it, for looking at."""
        host, results = next(self._predict(model, self.loader(split), 1, True, None))
        return host, *(answers.predictions for answers in results)

    def loader(self, split: str) -> Loader:
        """Of the batches of a split."""
        if split not in self._loaders:
            rows = rows_of(self.sharding, self.batch_size)
            self._loaders[split] = Loader(
                self.data, self.data_dir, split, self.batch_size, rows=rows, examples=self._examples
            )
        return self._loaders[split]

    def _predict(
        self,
        model: Multimodal,
        loader: Loader,
        steps: int,
        everything: bool,
        seed: int | None,
        change: Callable[[Batch, Any], Batch] | None = None,
    ) -> Iterator[tuple[HostBatch, list[Evaluated]]]:
        """Batch by batch: what the host knows, and every model's answers, on the host."""
        step = self._steps[everything]
        with DevicePrefetcher(loader, self.sharding, 0, steps) as feed:
            for number, placed in enumerate(feed):
                key = None if seed is None else jax.random.fold_in(jax.random.key(seed), number)
                batch = placed.batch if change is None else change(placed.batch, np.int32(number))
                yield placed.host, unstack(jax.device_get(step(model, batch, key)), self._count)
