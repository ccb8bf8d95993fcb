"""What all suites are given: the data, the split, the devices, and judge models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from mmjax.data.device_batches import DevicePrefetcher, rows_of
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Records
from mmjax.evaluation.judge_model import JudgeModel
from mmjax.layers.output import Output
from mmjax.sharding.rules import Rules
from mmjax.types import Feature


@dataclasses.dataclass(frozen=True, eq=False)
class EvalContext:
    """The data, split and devices of an evaluation; the mesh is the current one in all methods.

    `data` has fitted tokenizers, and `sharding` is how a batch lies on the mesh. The model sees the `visible`
    modalities, and `outputs` are the configurations of the run's outputs. Losses of aligned pairs are computed in
    groups of `group_size` examples, as in training. Draws follow from `seed`, and `say` prints progress.
    """

    data: Data
    data_dir: str
    split: str
    batch_size: int
    sharding: NamedSharding
    rules: Rules
    group_size: int = 1
    visible: Sequence[str] = ()
    outputs: Mapping[str, Output] = dataclasses.field(default_factory=dict)
    seed: int = 0
    say: Callable[[str], None] = lambda line: None
    _judges: dict[tuple[str, str], JudgeModel] = dataclasses.field(default_factory=dict)

    @property
    def features(self) -> dict[str, Feature]:
        """What the arrays of every input look like."""
        return self.data.features

    @functools.cached_property
    def records(self) -> Records:
        """The examples of the split as raw fields."""
        return self.data.open(self.data_dir, self.split)

    @functools.cached_property
    def clusters(self) -> Int[np.ndarray, "N"] | None:
        """The cluster of each example, for intervals of dependent examples; None if all are independent."""
        return self.data.clusters(self.data_dir, self.split)

    def with_inputs(self, names: set[str]) -> "EvalContext":
        """The same without the inputs that need not be read from disk."""
        inputs = {name: input for name, input in self.data.inputs.items() if name in names}
        return dataclasses.replace(self, data=chz.replace(self.data, inputs=inputs))

    def loader(self, split: str | None = None, *, examples: int | None = None) -> Loader:
        """Batches of a split, this one by default, or of so many evenly spread examples of it."""
        # Starting a worker process takes as long as a short pass.
        data, rows = chz.replace(self.data, workers=0), rows_of(self.sharding, self.batch_size)
        return Loader(data, self.data_dir, split or self.split, self.batch_size, rows=rows, examples=examples)

    def prefetch(self, loader: Loader, steps: int | None = None) -> DevicePrefetcher:
        """Iterates over a loader's batches, or the first `count` of them, prefetched to the devices."""
        return DevicePrefetcher(loader, self.sharding, 0, loader.steps if steps is None else steps)

    def to_devices(self, tree: Any) -> Any:
        """A tree of whole NumPy batches on the devices."""
        return jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, self.sharding, array.__getitem__), tree
        )

    def judge_model(self, run_dir: str, modality: str) -> JudgeModel:
        """The model of a run as a judge of a modality, loaded once. Raises UserError where it cannot judge it."""
        if (run_dir, modality) not in self._judges:
            self._judges[run_dir, modality] = JudgeModel(run_dir, modality, rules=self.rules)
        return self._judges[run_dir, modality]
