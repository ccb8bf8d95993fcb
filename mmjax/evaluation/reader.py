"""Our own trained classifier as a judge: the features that it sees, and what it reads, in one modality."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmjax import config
from mmjax.data.loader import blank
from mmjax.errors import UserError
from mmjax.heads import Classify
from mmjax.model import Multimodal
from mmjax.sharding.rules import Rules
from mmjax.training.restore import restore_model
from mmjax.types import Batch, Feature


class Reading(NamedTuple):
    """What a reader makes of E examples: S slots and K classes are those of an output's label.

    `reader` is its name, `features` the fused summary of D numbers, and `probabilities` are by output.
    """

    reader: str
    features: Float[np.ndarray, "E D"]
    probabilities: dict[str, Float[np.ndarray, "E S K"]]

    @property
    def answers(self) -> dict[str, Int[np.ndarray, "E S"]]:
        """The most probable classes, by output."""
        return {name: said.argmax(-1) for name, said in self.probabilities.items()}


class Reader:
    """The model of a finished run, shown a single modality.

    It need not have been trained on that modality alone, but it should have learned to do without the others
    (`model.modality_dropout`). The mesh is the current one whenever this is called.

    Attributes:
        name: of the experiment, with its fingerprint; belongs to every number that comes from here.
        targets: the labels that are read, by output.
    """

    def __init__(self, run_dir: str | Path, modality: str, features: Mapping[str, Feature], *, rules: Rules):
        """`features` are those of the data that is to be judged.

        Raises UserError where there is no finished run, or its model does not read `modality`, says no classes, or has
        learned from features of the same names and another kind.
        """
        experiment = config.read(run_dir)
        own = experiment.data.bind(experiment.data_dir, run_dir).features
        encoders = {name: own[name] for name, encoder in experiment.model.encoders.items() if encoder is not None}
        outputs = experiment.model.outputs.items()
        self.name = f"{experiment.name} {config.fingerprint(experiment)}"
        self.targets = {name: output.target for name, output in outputs if isinstance(output, Classify)}
        if modality not in encoders:
            raise UserError(f"the run {run_dir} cannot judge {modality}: it reads {', '.join(encoders)}")
        if not self.targets:
            raise UserError(f"the run {run_dir} cannot judge {modality}: it has no output of the kind Classify")
        for name in (modality, *self.targets.values()):
            if name in features and features[name] != own[name]:
                raise UserError(
                    f"the run {run_dir} cannot judge {modality}: {name} is {own[name]} there and {features[name]} here"
                )
        self._modality, self._features = modality, encoders
        mesh = jax.sharding.get_mesh()
        self._sharding = NamedSharding(mesh, rules.spec("batch"))
        parts = math.prod(mesh.shape[axis] for axis in rules.batch)
        self._size = math.ceil(experiment.train.batch_size / parts) * parts
        self._model, _ = restore_model(experiment, run_dir, own, rules, experiment.train.steps)
        self._step = jax.jit(functools.partial(_read, outputs=tuple(self.targets), rules=rules))

    def read(self, values: Shaped[np.ndarray, "E ..."], mask: Bool[np.ndarray, "E N"] | None = None) -> Reading:
        """Reads E examples of the modality, as `mmjax.types.Batch` holds it; all places are real without a mask.

        All processes must call it with the same examples.
        """
        if mask is None:
            mask = np.ones(values.shape[:2], bool)
        # Of no examples at all the shapes are still wanted.
        begins = range(0, max(1, len(values)), self._size)
        parts = [self._part(values[begin : begin + self._size], mask[begin : begin + self._size]) for begin in begins]
        features, probabilities = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        return Reading(self.name, features, probabilities)

    def _part(
        self, values: Shaped[np.ndarray, "E ..."], mask: Bool[np.ndarray, "E N"]
    ) -> tuple[Float[np.ndarray, "E D"], dict[str, Float[np.ndarray, "E S K"]]]:
        """Reads what one batch holds, or less: the rest of it is absent, as are all other modalities."""
        name, count = self._modality, len(values)
        batch = blank(self._features, self._size)
        batch.values[name][:count] = values
        batch.present[name][:count] = True
        if name in batch.mask:
            batch.mask[name][:count] = mask
        placed = jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, self._sharding, array.__getitem__), batch
        )
        return jax.tree.map(lambda array: array[:count], jax.device_get(self._step(self._model, placed)))


def _read(
    model: Multimodal, batch: Batch, *, outputs: tuple[str, ...], rules: Rules
) -> tuple[Float[Array, "B D"], dict[str, Float[Array, "B S K"]]]:
    """The fused summary, and class probabilities by output; whole on every device."""
    fused, _ = model(batch)
    said = {name: model.outputs[name].predict(fused, None)["probabilities"] for name in outputs}
    return jax.tree.map(
        lambda array: jax.sharding.reshard(array, rules.spec(*[None] * array.ndim)),
        (fused.pooled.astype(jnp.float32), said),
    )
