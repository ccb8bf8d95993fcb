"""Writing an export: a folder that appears whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mmjax.checkpoint import int8
from mmjax.checkpoint.exported import CONFIG, FORMAT, MANIFEST, PARAMETERS, is_export, sha256
from mmjax.checkpoint.pretrained.save import save_pretrained
from mmjax.config import experiment_file
from mmjax.errors import UserError
from mmjax.evaluation.results import Results
from mmjax.export.card import CARD, write_card
from mmjax.export.functions import GENERATE, Function, argument_types, functions_of, types_by_name
from mmjax.export.onnx import check_onnx, export_onnx, in_float32
from mmjax.export.stablehlo import export_stablehlo
from mmjax.files import explained, local_path, read_json, to_path, write_atomic
from mmjax.inference import TrainedRun, load
from mmjax.training.metrics import parameters_digest
from mmjax.training.run_dir import DATA_FILE

STABLEHLO, SAFETENSORS, ONNX, HUGGING_FACE = FORMATS = ("stablehlo", "safetensors", "onnx", "huggingface")


def export_run(
    run_dir: str,
    out: str,
    *,
    formats: Collection[str],
    what: Collection[str] | None,
    platforms: Sequence[str],
    quantize: str | None = None,
    step: int | None = None,
    license: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes a checkpoint of a run into the folder `out`; returns the path of its manifest.

    It takes the place of an earlier export. Parameters, configuration and tokenizers are always there; `formats` says
    what else is.

    Args:
        run_dir: the run.
        out: the new folder.
        formats: some of `FORMATS`.
        what: the functions to export, some of `mmjax.export.functions.WHAT`; None: all that the run has.
        platforms: what StableHLO is lowered for, some of `mmjax.export.stablehlo.PLATFORMS`.
        quantize: "int8": large parameters are written as int8 with scales, see `mmjax.checkpoint.int8`, except those of
            the format huggingface.
        step: which checkpoint; None: the newest.
        license: the licence of the parameters, for the model card.
        say: prints a line about the progress.

    Raises:
        UserError: there is no such checkpoint, `out` is another folder, or the model cannot be exported so.
    """
    folder = _check_target(Path(os.path.abspath(local_path(out))))
    if is_export(run_dir):
        raise UserError(f"{run_dir} is an export already; give the run directory that it came from")
    if ONNX in formats:
        check_onnx()
    run = load(run_dir, step)
    functions = functions_of(run, what) if {STABLEHLO, ONNX} & {*formats} else []
    for_onnx: dict[str, Function] = {}
    if ONNX in formats:
        check_onnx(run)
        for_onnx = {each.name: each for each in functions_of(in_float32(run), what) if not each.draws}
        if GENERATE in (what or ()):
            raise UserError("what=generate: ONNX has no keys to draw from; leave generate out, or onnx out of format")
    with _written_whole(folder) as partial:
        if HUGGING_FACE in formats:
            say("Hugging Face's layout")
            save_pretrained(run.model, run.experiment.model, run.data.inputs, partial / HUGGING_FACE)
        parameters = {name: np.asarray(leaf) for name, leaf in run.params.items()}
        if quantize is not None:
            parameters = int8.quantize(parameters)
            run = _with_parameters(run, int8.dequantize(parameters))
        manifest = _facts(run, run_dir, license, parameters) | {"quantize": quantize}
        for function in functions:
            onnx = for_onnx.get(function.name)
            if STABLEHLO in formats or onnx is not None:
                entry = _write_function(
                    run, function, parameters, partial, platforms if STABLEHLO in formats else (), onnx, say
                )
                manifest["functions"][function.name] = entry
        experiment_file.write(run.experiment, partial, file=CONFIG)
        run.data.save(partial)
        (partial / CARD).write_text(write_card(run, manifest), encoding="utf-8")
        _save_parameters(parameters, partial / PARAMETERS, say)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest["files"] = {
            path.relative_to(partial).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in paths
        }
        write_atomic(partial / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return folder / MANIFEST


def _facts(run: TrainedRun, run_dir: str, license: str | None, parameters: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the manifest says of the run and of its parameters."""
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "step": run.step,
        "fingerprint": experiment_file.fingerprint(run.experiment),
        "parameters_digest": parameters_digest(run.model),
        "average": run.experiment.train.ema is not None,
        "license": license,
        "versions": {package: version(package) for package in ("jax", "flax", "safetensors")},
        "parameters": {name: {"shape": [*leaf.shape], "dtype": leaf.dtype.name} for name, leaf in parameters.items()},
        "classes": {
            name: list(names)
            for name, part in run.experiment.model.outputs.items()
            if part is not None and part.target_feature and (names := run.data.features[part.target_feature].classes)
        },
        "token_ids": {name: ids for name in run.model.encoders if (ids := run.data.inputs[name].moved_ids)},
        "functions": {},
        **_measured(run_dir, run.step),
    }


def _write_function(
    run: TrainedRun,
    function: Function,
    parameters: Mapping[str, np.ndarray],
    folder: Path,
    platforms: Sequence[str],
    onnx: Function | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes a function's files; returns what the manifest says of it.

    StableHLO is written where there are `platforms`, and ONNX where there is the function in float32, `onnx`.
    """
    arguments = argument_types(run, function, parameters, 1)
    entry: dict[str, Any] = {
        "about": function.about,
        "inputs": types_by_name(arguments[1]),
        "outputs": types_by_name(jax.eval_shape(function.call, *arguments)),
        "draws": function.draws,
        "files": {},
    }
    file = quote(function.name, safe="")
    if platforms:
        say(f"{function.name}: StableHLO for {', '.join(platforms)}")
        exported = export_stablehlo(run, function, parameters, platforms)
        (folder / f"{file}.stablehlo").write_bytes(exported.serialize())
        entry["files"][STABLEHLO] = f"{file}.stablehlo"
        entry["platforms"] = list(exported.platforms)
    if onnx is not None:
        say(f"{function.name}: ONNX")
        count, error = export_onnx(run, onnx, parameters, folder / f"{file}.onnx")
        entry["files"][ONNX] = f"{file}.onnx"
        entry["onnx"] = {"batch": count, "largest_difference": error}
    return entry


def _with_parameters(run: TrainedRun, parameters: Mapping[str, np.ndarray]) -> TrainedRun:
    leaves = [jax.device_put(parameters[name], leaf.sharding) for name, leaf in run.params.items()]
    return run.with_model(jax.tree.unflatten(jax.tree.structure(run.model), leaves))


def _check_target(folder: Path) -> Path:
    """The folder, if it is new or empty or has nothing but an export in it. Raises UserError otherwise."""
    with explained(folder):
        if folder.is_symlink():
            raise UserError(f"out={folder} is a link; give the folder itself")
        found = [path for path in folder.rglob("*") if not path.is_dir()] if folder.exists() else []
        if folder.exists() and not found:
            next(folder.iterdir(), None)  # raises where it is not a folder
    try:
        listed = {MANIFEST, *read_json(folder / MANIFEST)["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        listed = set()
    for path in found:
        if path.relative_to(folder).as_posix() not in listed:
            raise UserError(f"out={folder} holds {path.name}, not of an export; choose a new or an empty folder")
    return folder


@contextlib.contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A new folder beside it, which takes its place at the end, or is removed where that is not reached."""
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        with explained(folder):
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                os.rename(folder, old)
            os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _measured(run_dir: str, step: int) -> dict[str, Any]:
    """The fingerprints of the run's data by split, and the metrics of the checkpoint, if it was evaluated."""
    found = Results(run_dir).read(step)
    try:
        data = read_json(to_path(run_dir) / DATA_FILE)
    except (OSError, ValueError):
        data = {}
    return {
        "data": (data if isinstance(data, dict) else {}) | found.get("data", {}),
        "metrics": found.get("metrics", {}),
    }


def _save_parameters(parameters: dict[str, np.ndarray], path: Path, say: Callable[[str], None]) -> None:
    say(f"{len(parameters)} arrays, {sum(array.nbytes for array in parameters.values()) / 1e6:.1f} MB")
    try:
        save_file(parameters, path)
        path.chmod((path.parent / CARD).stat().st_mode)  # it is written for the owner alone
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}") from error
