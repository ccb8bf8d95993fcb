"""What a trained run can do, as pure functions of parameters by name and a batch of plain dicts."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmjax.checkpoint.int8 import dequantize
from mmjax.errors import UserError
from mmjax.inference import TrainedRun, defined_outputs, embed_batch, predict_batch
from mmjax.types import Batch

# The size of the dimension of arrays with one row an example.
BATCH = "batch"
EMBED, PREDICT, GENERATE = WHAT = ("embed", "predict", "generate")


@dataclasses.dataclass(frozen=True)
class Function:
    """A function `call(parameters, batch)` or, where it draws at random, `call(parameters, batch, key)`.

    Parameters are arrays by path name, perhaps of int8 with their scales, the batch is {"values": ..., "mask": ...,
    "present": ...} with arrays by modality, and the key is uint32[2], the data of a JAX key. The result is a dict of
    arrays, or of such dicts by output.
    """

    name: str
    about: str
    call: Callable[..., dict[str, Any]]
    draws: bool = False


def generating_outputs(run: TrainedRun) -> dict[str, str]:
    """The outputs that write a text, or draw an image or audio, with the feature that each generates."""
    found = {}
    for name in defined_outputs(run.model):
        part = run.experiment.model.outputs[name]
        feature = None if part is None else run.data.features.get(part.target_feature or "")
        if feature is not None and (feature.is_text or feature.is_media):
            found[name] = str(part.target_feature)  # type: ignore[union-attr]
    return found


def functions_of(run: TrainedRun, what: Collection[str] | None) -> list[Function]:
    """The functions of those kinds, all that the run has where None is given.

    Raises UserError where the run has none of a kind.
    """
    generating = generating_outputs(run)
    if GENERATE in (what or ()) and not generating:
        raise UserError("what=generate: the run generates no text, image or audio; leave generate out")
    outputs = defined_outputs(run.model)
    if PREDICT in (what or ()) and not outputs:
        raise UserError("what=predict: no output of the run sees what it reads; leave predict out")
    kinds = WHAT if what is None else what
    found = []
    if EMBED in kinds:
        embed = functools.partial(embed_batch, rules=run.model.rules)
        found.append(Function(EMBED, "vectors of every example", _plain(run, embed)))
    if PREDICT in kinds and outputs:
        predict = functools.partial(predict_batch, outputs=outputs)
        found.append(Function(PREDICT, "what every output predicts, nothing drawn at random", _plain(run, predict)))
    if GENERATE in kinds:
        for name, target in generating.items():
            about = f"a draw of {target} for every example"
            found.append(Function(f"{GENERATE}-{name}", about, _plain(run, _drawing(name)), draws=True))
    return found


def _drawing(output: str) -> Callable[..., dict[str, Array]]:
    def draw(model: Any, batch: Batch, key: jax.Array | None) -> dict[str, Array]:
        return predict_batch(model, batch, key, outputs=(output,))[output]

    return draw


def _plain(run: TrainedRun, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A function of model, batch and key as one of parameters by name, plain dicts and the data of a key."""
    structure, names = jax.tree.structure(run.model), list(run.params)

    def call(parameters: dict[str, Array], batch: dict[str, dict[str, Array]], *key: Array) -> dict[str, Any]:
        floats = dequantize(parameters)
        model = jax.tree.unflatten(structure, [floats[name] for name in names])
        return function(
            model,
            Batch(batch["values"], batch["mask"], batch["present"]),
            jax.random.wrap_key_data(key[0]) if key else None,
        )

    return call


def argument_types(run: TrainedRun, function: Function, parameters: Mapping[str, Any], size: Any) -> tuple[Any, ...]:
    """Shapes and dtypes of a function's arguments for `size` examples, a number or a symbolic dimension."""
    types = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in parameters.items()}
    batch: dict[str, dict[str, Any]] = {"values": {}, "mask": {}, "present": {}}
    for name in run.model.encoders:
        feature = run.data.features[name]
        batch["values"][name] = jax.ShapeDtypeStruct((size, *feature.shape), feature.dtype)
        if feature.has_mask:
            batch["mask"][name] = jax.ShapeDtypeStruct((size, feature.shape[0]), bool)
        batch["present"][name] = jax.ShapeDtypeStruct((size,), bool)
    return (types, batch, *([jax.ShapeDtypeStruct((2,), jnp.uint32)] if function.draws else []))


def types_by_name(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every array of a batch or of a result, by its path.

    The number of examples is "batch".
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "shape": [BATCH, *leaf.shape[1:]],
            "dtype": leaf.dtype.name,
        }
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
