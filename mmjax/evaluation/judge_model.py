"""A trained run as a judge: its features, classes and texts of one modality of generated examples."""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import chz
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Shaped

from mmjax.config import experiment_file
from mmjax.data.batching.host_batch import empty_batch
from mmjax.data.inputs import Input
from mmjax.errors import UserError
from mmjax.model import Multimodal
from mmjax.run_folder import RunFolder
from mmjax.sharding.rules import Rules
from mmjax.types import Batch


class Judgement(NamedTuple):
    """What a judge model predicts of E examples: S slots and K classes are those of an output's label.

    `judge` is its name, `features` the fused summary of D numbers; `probabilities` and the `texts` that it writes are
    by output.
    """

    judge: str
    features: Float[np.ndarray, "E D"]
    probabilities: dict[str, Float[np.ndarray, "E S K"]]
    texts: dict[str, list[str]]

    @property
    def classes(self) -> dict[str, Int[np.ndarray, "E S"]]:
        """The most probable classes, by output."""
        return {name: each.argmax(-1) for name, each in self.probabilities.items()}


class JudgeModel:
    """The model of a finished run, shown a single modality.

    It need not have been trained on that modality alone, but it should have learned to do without the others
    (`model.modality_dropout`). The mesh is the current one whenever this is called.

    Attributes:
        name: of the experiment, with its fingerprint; belongs to every number that comes from here.
        input: how it reads the modality from the raw field of `field`.
        truth: how the labels and texts that it predicts are read from raw fields, by output.
    """

    def __init__(self, run_dir: str | Path, modality: str, *, rules: Rules):
        """Raises UserError where there is no finished run, or its model cannot judge `modality`."""
        folder = RunFolder(run_dir)
        experiment, data = folder.experiment, folder.load_data()
        encoders = {name: data.features[name] for name, part in experiment.model.encoders.items() if part is not None}
        targets = {
            name: output.target_feature
            for name, output in experiment.model.outputs.items()
            if output is not None and output.can_judge and output.target_feature is not None
        }
        self.name = f"{experiment.name} {experiment_file.fingerprint(experiment)}"
        if modality not in encoders:
            raise UserError(f"the run {run_dir} cannot judge {modality}: it reads {', '.join(encoders)}")
        if not targets:
            raise UserError(
                f"the run {run_dir} cannot judge {modality}: it has no output that predicts classes or text"
            )
        self.input = _with_field(modality, data.inputs[modality])
        self.truth = {name: _with_field(target, data.inputs[target]) for name, target in targets.items()}
        self._modality, self._features = modality, encoders
        mesh = jax.sharding.get_mesh()
        self._sharding = NamedSharding(mesh, rules.spec("batch"))
        parts = math.prod(mesh.shape[axis] for axis in rules.batch)
        self._size = math.ceil(experiment.train.batch_size / parts) * parts
        self._model, _ = folder.restore(experiment.model, data.features, rules, experiment.train.steps)
        self._step = jax.jit(functools.partial(_read, outputs=tuple(targets), rules=rules))

    def read(self, values: Shaped[np.ndarray, "E ..."], mask: Bool[np.ndarray, "E N"] | None = None) -> Judgement:
        """Judges E examples of the modality as a `Batch` holds it; all places are real without a mask.

        All processes must call it with the same examples.
        """
        if mask is None:
            mask = np.ones(values.shape[:2], bool)
        # Of no examples at all the shapes are still wanted.
        begins = range(0, max(1, len(values)), self._size)
        parts = [self._part(values[begin : begin + self._size], mask[begin : begin + self._size]) for begin in begins]
        features, found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        probabilities = {name: out["probabilities"] for name, out in found.items() if "probabilities" in out}
        texts = {name: self._decode(name, out["ids"]) for name, out in found.items() if "ids" in out}
        return Judgement(self.name, features, probabilities, texts)

    def _decode(self, output: str, ids: Int[np.ndarray, "E N"]) -> list[str]:
        return [self.truth[output].to_raw({"ids": row}) for row in ids]

    def _part(
        self, values: Shaped[np.ndarray, "E ..."], mask: Bool[np.ndarray, "E N"]
    ) -> tuple[Float[np.ndarray, "E D"], dict[str, dict[str, np.ndarray]]]:
        """Reads what one batch holds, or less: the rest of it is absent, as are all other modalities."""
        name, count = self._modality, len(values)
        batch = empty_batch(self._features, self._size)
        batch.values[name][:count] = values
        batch.present[name][:count] = True
        if name in batch.mask:
            batch.mask[name][:count] = mask
        placed = jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, self._sharding, array.__getitem__), batch
        )
        return jax.tree.map(lambda array: array[:count], jax.device_get(self._step(self._model, placed)))


def _with_field(name: str, input: Input) -> Input:
    """The input of a feature that, under any other name, reads the same field."""
    return chz.replace(input, field=input.field or name)


def _read(
    model: Multimodal, batch: Batch, *, outputs: tuple[str, ...], rules: Rules
) -> tuple[Float[Array, "B D"], dict[str, dict[str, Array]]]:
    """The fused summary, and predictions by output; whole on every device."""
    fused, _ = model(batch)
    predictions = {name: model.outputs[name].predict(fused, None) for name in outputs}
    return rules.gather((fused.pooled.astype(jnp.float32), predictions))
