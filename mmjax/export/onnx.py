"""ONNX by jax2onnx, which counts as written once ONNX Runtime computes with it what JAX does."""

import contextlib
import functools
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import chz
import jax
import numpy as np
from jax import export

from mmjax.errors import UserError
from mmjax.export.functions import BATCH, Function, argument_types
from mmjax.export.primitives import simplify
from mmjax.inference import TrainedRun
from mmjax.model import build_model

EXTRA = 'format=onnx needs jax2onnx and onnxruntime: pip install "mmjax[onnx]"'
# Of the results, relative and absolute.
TOLERANCE = 1e-4
# Bytes of a file in the format that ONNX files have.
LARGEST = 2**31 - 2**26


def check_onnx(run: TrainedRun | None = None) -> None:
    """Raises UserError where the packages are not installed, or a run's parameters do not fit into a file."""
    if not all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")):
        raise UserError(EXTRA)
    size = 0 if run is None else sum(leaf.nbytes for leaf in run.params.values())
    if size > LARGEST:
        raise UserError(f"the parameters take {size:,} bytes, and an ONNX file holds 2 GB: leave onnx out of format")


def in_float32(run: TrainedRun) -> TrainedRun:
    """The run with its model computing in float32.

    Of other types ONNX Runtime lacks operators on some machines.
    """
    model = chz.replace(run.experiment.model, dtype="float32")
    build = functools.partial(build_model, model=model, features=run.data.features, rules=run.model.rules)
    structure = jax.tree.structure(jax.eval_shape(build, jax.random.key(0)))
    return run.with_model(jax.tree.unflatten(structure, jax.tree.leaves(run.model)))


def export_onnx(
    run: TrainedRun, function: Function, parameters: Mapping[str, Any], path: Path
) -> tuple[int | str, float]:
    """Writes a function without a key; returns its number of examples and the largest error.

    The file holds the parameters. The number is "batch" for any, or 1 where a loop does not allow that. Inputs and
    outputs are called by their paths: "values/image", "pooled".

    Raises UserError where jax2onnx cannot convert the function, or ONNX Runtime computes something else.
    """
    reason = ""
    for size in (export.symbolic_shape(BATCH)[0], 1):
        try:
            with _quiet():
                content = _convert(run, function, parameters, size)
                error = max(
                    _compare(run, function, parameters, content, count) for count in ((1,) if size == 1 else (2, 3))
                )
        except Exception as failure:  # jax2onnx and ONNX Runtime raise many kinds
            reason = (str(failure).strip().partition("\n")[0] or type(failure).__name__).rstrip(".")
            continue
        path.write_bytes(content)
        return (1 if size == 1 else BATCH), error
    fix = f"leave onnx out of format, or {function.name} out of what"
    raise UserError(f"{function.name} cannot be exported as ONNX: {reason}; {fix}")


def _convert(run: TrainedRun, function: Function, parameters: Mapping[str, Any], size: Any) -> bytes:
    import jax2onnx
    import onnx

    constants = {name: jax.numpy.asarray(array) for name, array in parameters.items()}
    _, batch = argument_types(run, function, parameters, size)
    types, structure = jax.tree.flatten(batch)

    def call(*arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(function.call(constants, jax.tree.unflatten(structure, arrays)))

    with _unchanged(jax.numpy):
        model = jax2onnx.to_onnx(simplify(call, *types), types, model_name=function.name)
    graph = model.graph
    outputs = _paths(jax.eval_shape(function.call, constants, batch))
    for values, names in ((graph.input, _paths(batch)), (graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            ends = (value.name, name) if values is graph.output else (name, value.name)
            node = onnx.helper.make_node("Identity", [ends[0]], [ends[1]])
            graph.node.insert(len(graph.node) if values is graph.output else 0, node)
            value.name = name
    return model.SerializeToString()


@contextlib.contextmanager
def _unchanged(module: ModuleType) -> Iterator[None]:
    """Gives a module its attributes back: jax2onnx leaves a jax.numpy.cumsum that takes less."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def _paths(tree: Any) -> list[str]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]


def _compare(run: TrainedRun, function: Function, parameters: Mapping[str, Any], content: bytes, count: int) -> float:
    """The largest difference between ONNX Runtime and JAX on `count` examples.

    Raises ValueError where it is too large.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options)
    batch = _random_batch(run, function, count)
    wanted = jax.tree.leaves(jax.jit(function.call)(parameters, batch))
    feeds = dict(zip(_paths(batch), jax.tree.leaves(batch), strict=True))
    found = session.run(None, feeds)
    worst = 0.0
    for value, got, want in zip(session.get_outputs(), found, map(np.asarray, wanted), strict=True):
        if got.shape != want.shape or not np.allclose(got, want, TOLERANCE, TOLERANCE):
            raise ValueError(f"ONNX Runtime computes another {value.name} than JAX")
        worst = max(worst, float(np.abs(got.astype(np.float64) - want).max(initial=0)))
    return worst


def _random_batch(run: TrainedRun, function: Function, count: int) -> Any:
    """Examples of which the first has all modalities, and others lack some."""
    rng = np.random.default_rng(0)
    _, batch = argument_types(run, function, run.params, count)
    for name, type_ in batch["values"].items():
        feature = run.data.features[name]
        most = feature.vocabulary if feature.is_text else len(feature.classes)  # type: ignore[attr-defined]
        ids = np.issubdtype(type_.dtype, np.integer)
        batch["values"][name] = rng.integers(0, most, type_.shape, type_.dtype) if ids else rng.random(type_.shape, "f")
        batch["present"][name] = (rng.random(count) < 0.7) | (np.arange(count) == 0)
    for name, type_ in batch["mask"].items():
        batch["mask"][name] = np.arange(type_.shape[1]) < rng.integers(1, type_.shape[1] + 1, (count, 1))
    return batch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the converter logs of its own graph off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
