"""A trained run in Python: embed, predict and generate from arrays, files or raw bytes.

run = mmjax.load("runs/scenes")
vectors = run.embed(image=["a.png", "b.png"])["pooled"]
answers = run.predict(image=pixels)["shape"]
images = run.generate("image", text="a red circle", n=8)
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from mmjax.data.batching.host_batch import empty_batch, set_example
from mmjax.data.clean import BadInput
from mmjax.data.prompt import check_text, read_file
from mmjax.errors import UserError
from mmjax.evaluation.intermediates import intermediates
from mmjax.layers.tree import named_leaves
from mmjax.model import Multimodal
from mmjax.run_folder import RunFolder
from mmjax.sharding.mesh import MeshShape, choose_rules
from mmjax.sharding.rules import Rules
from mmjax.types import Batch

# Examples that go through the model at a time.
BATCH = 64

Raw = Any  # uint8[H W C], a Recording, a text, raw bytes, or the path of a file


def load(run_dir: str | Path, step: int | None = None, mesh: MeshShape | None = None) -> "TrainedRun":
    """The model of a run directory or of an export, ready to use.

    Args:
        run_dir: the directory of a run, finished or still training, or a folder that `launch.export` wrote.
        step: which checkpoint; None: the newest.
        mesh: the mesh that it computes on; None: one device.

    Raises:
        UserError: there is no run, no such checkpoint, or it is damaged; or an export is damaged or of another version.
    """
    return TrainedRun(run_dir, step, mesh)


class TrainedRun:
    """A trained model with the inputs of its run.

    Attributes:
        experiment: the run's configuration.
        step: the checkpoint's step.
        model: the model (the moving average of its parameters, where the run keeps one), a pytree on `mesh`.
        params: its parameters by path name.
        mesh: the mesh that it lies on.

    Methods take examples by modality: `image=`, `text=`, whatever the run's encoders are called. A value is one example
    or a list of N: an image as uint8[H W C], audio as `Recording(samples, rate)`, a text as str, and any of them but
    texts as the path of a file or its bytes. What is left out is absent, as in training. A text that is longer than the
    model reads is refused. Results have the leading dimension N.
    """

    def __init__(self, run_dir: str | Path, step: int | None = None, mesh: MeshShape | None = None):
        folder = RunFolder(run_dir)
        self.experiment, self.data = folder.experiment, folder.load_data()
        shape = mesh or MeshShape(data=1)
        self.mesh = shape.build(jax.local_devices() if mesh is not None else jax.local_devices()[:1])
        with jax.set_mesh(self.mesh):
            self._rules = choose_rules(self.experiment.rules, self.mesh)
            self._sharding = NamedSharding(self.mesh, self._rules.spec("batch"))
            self.model, self.step = folder.restore(self.experiment.model, self.data.features, self._rules, step)
        self._embed = jax.jit(functools.partial(embed_batch, rules=self._rules))
        self._predict = jax.jit(predict_batch, static_argnames="outputs")

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by path name, such as "encoders/image/patch/kernel"."""
        return dict(named_leaves(self.model))

    def with_model(self, model: Multimodal) -> "TrainedRun":
        """The same run with another model, of the same inputs and outputs."""
        changed = copy.copy(self)
        changed.model = model
        return changed

    def embed(self, **given: Raw | Sequence[Raw]) -> dict[str, Float[np.ndarray, "N D"]]:
        """Vectors of N examples by name.

        "pooled" is the fused summary, "encoders/MODALITY" the mean token of a modality, and, where an output aligns
        modalities, "OUTPUT/MODALITY" the unit embedding that it compares. `mmjax.evaluation.intermediates` lists the
        rest.
        """
        names = ", ".join(self.model.encoders)
        if unknown := [name for name in given if name not in self.model.encoders]:
            raise UserError(f"embed got {unknown[0]}, which the run does not encode; it encodes {names}")
        return self._run(self._embed, given)

    def predict(self, **given: Raw | Sequence[Raw]) -> dict[str, Any]:
        """What every output predicts of N examples, by output, without anything drawn at random.

        Of a label a list of N lists of (class, probability), one pair a slot; of a text N strings; of an image or audio
        N arrays or recordings; of anything else the output's arrays.
        """
        found = self._run(functools.partial(self._predict, outputs=defined_outputs(self.model)), given)
        return {name: self._read(name, arrays) for name, arrays in found.items()}

    def generate(self, to: str, *, n: int = 1, seed: int = 0, **given: Raw) -> list[Any]:
        """`n` draws of a modality, given one example of others: uint8[H W C] images, texts, or recordings.

        Args:
            to: the modality, or the output, to generate.
            n: how many are drawn.
            seed: what the draws follow from: the same seed gives the same ones.
            given: what they are generated from, one example by modality; nothing: from the prior.

        Raises:
            UserError: the run does not generate `to`, or not from what is given.
        """
        targets = {
            name: part.target_feature
            for name, part in self.experiment.model.outputs.items()
            if part is not None and part.target_feature is not None
        }
        found = [name for name, target in targets.items() if to in (name, target)]
        if not found:
            listed = ", ".join(map(str, targets.values())) or "nothing"
            raise UserError(f"generate(to={to!r}): the run generates {listed}")
        hidden = [name for name in found if given and set(given) <= set(self.model.hidden_modalities[name])]
        if hidden == found:
            raise UserError(f"generate(to={to!r}): {found[0]} does not see {', '.join(given)}; give something else")
        name = next(each for each in found if each not in hidden)
        many = {modality: [_one(value)] * n for modality, value in given.items()}
        if not many:
            many = {next(iter(self.model.encoders)): [None] * n}
        draws = self._run(functools.partial(self._predict, outputs=(name,)), many, jax.random.key(seed))[name]
        return self._read(name, draws)

    def _run(self, function: Any, given: Mapping[str, Any], key: jax.Array | None = None) -> dict[str, Any]:
        """`function` of the model on all examples, in batches of one size."""
        examples = {name: _many(value) for name, value in given.items()}
        counts = {name: len(values) for name, values in examples.items()}
        if not counts or min(counts.values()) < 1:
            raise UserError("nothing is given; name at least one modality with an example")
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"all modalities need the same number of examples, and got {listed}")
        total = next(iter(counts.values()))
        parts = self.mesh.size
        size = -(-min(BATCH, total) // parts) * parts
        results = []
        with jax.set_mesh(self.mesh):
            for start in range(0, total, size):
                part = {name: values[start : start + size] for name, values in examples.items()}
                batch = jax.device_put(self._batch(part, size), self._sharding)
                draw = key if key is None or start == 0 else jax.random.fold_in(key, start)
                results.append(jax.device_get(function(self.model, batch, key=draw)))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:total], *results)

    def _batch(self, examples: Mapping[str, Sequence[Raw]], size: int) -> Batch:
        inputs = self.data.inputs
        batch = empty_batch(self.data.features, size)
        for name, values in examples.items():
            if name not in inputs:
                raise UserError(f"the run has no input {name}; it has {', '.join(inputs)}")
            for row, raw in enumerate(values):
                if raw is None:
                    continue
                try:
                    check_text(inputs[name], raw)
                    array, mask = inputs[name].read(_content(raw, inputs[name].feature.is_text), None)
                except BadInput as error:
                    raise UserError(f"{name}[{row}] cannot be used: {error}") from error
                set_example(batch, row, name, array, mask)
        return batch

    def _read(self, output: str, arrays: Mapping[str, np.ndarray]) -> Any:
        """Predictions as what a user would call them."""
        part = self.experiment.model.outputs[output]
        target = None if part is None else part.target_feature
        if target is None:
            return dict(arrays)
        input = self.data.inputs[target]
        rows = [{name: array[row] for name, array in arrays.items()} for row in range(len(next(iter(arrays.values()))))]
        if names := input.feature.classes:
            return [[(names[int(s.argmax())], float(s.max())) for s in row["probabilities"]] for row in rows]
        raws = [input.to_raw(row) for row in rows]
        return dict(arrays) if raws[0] is None else raws


def defined_outputs(model: Multimodal) -> tuple[str, ...]:
    """The outputs that predict something, by name."""
    return tuple(name for name in model.outputs if model.is_defined(name))


def predict_batch(
    model: Multimodal, batch: Batch, key: jax.Array | None, *, outputs: tuple[str, ...]
) -> dict[str, dict[str, Array]]:
    """What these outputs predict of a batch."""
    # Draws do not depend on which outputs are asked for; the others are not computed.
    return {name: found for name, found in model.predict(batch, key).items() if name in outputs}


def embed_batch(model: Multimodal, batch: Batch, key: jax.Array | None, *, rules: Rules) -> dict[str, Array]:
    """Vectors of a batch by name; see `TrainedRun.embed`."""
    found = intermediates(model, batch, rules=rules)
    streams, _ = model.encode(batch, None)
    for name, head in model.outputs.items():
        for side, modality in enumerate(head.aligned_modalities):
            found[f"{name}/{modality}"] = rules.gather({"": head.embed_modality(side, streams[modality])})[""]
    return found


def _one(value: Raw | Sequence[Raw]) -> Raw:
    values = _many(value)
    if len(values) != 1:
        raise UserError(f"generate takes one example per modality and makes n samples from it, not {len(values)}")
    return values[0]


def _many(value: Raw | Sequence[Raw]) -> list[Raw]:
    """A list of examples: a single image, recording, text, number, vector, path or bytes is one."""
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim == 4 or (value.ndim == 2 and value.dtype.kind == "f") else [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or (value and isinstance(value[0], float)):
        return [value]
    return list(value)


def _content(raw: Raw, text: bool) -> Raw:
    """What an input reads of one example: files are opened, other things are taken as they are."""
    return raw if text or not isinstance(raw, str | Path) else read_file(raw)
