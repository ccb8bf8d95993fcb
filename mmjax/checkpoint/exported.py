"""A folder that `launch.export` wrote: its manifest, its tokenizers, and the model in it.

It may come from anywhere. Nothing of it is run or unpickled, and no file outside it is read.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import chz
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open

from mmjax.checkpoint.int8 import SCALE, dequantize_one
from mmjax.checkpoint.manager import Restored
from mmjax.data.inputs import Input
from mmjax.data.loader import Data
from mmjax.data.tokenize import Corpus
from mmjax.errors import UserError
from mmjax.files import check_regular_file, local_path, read_json, to_path
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, Multimodal, build_model
from mmjax.sharding.rules import Rules
from mmjax.types import Feature

MANIFEST, CONFIG, PARAMETERS = "export.json", "config.json", "model.safetensors"
TOKENIZERS = "tokenizers"
# In front of a parameter's name, as in a checkpoint.
MODEL = "model/"
# Of `export.json`; another one is refused.
FORMAT = 1
# Bytes of the largest manifest that is read.
LARGEST = 2**26
AGAIN = "export the run again"


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export, and not the directory of a run."""
    with contextlib.suppress(OSError):
        return (to_path(folder) / MANIFEST).exists()
    return False


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What `export.json` says, once all files that it lists are found to be as they were written.

    Raises UserError where it is of another version of mmjax, or a file is missing, cut short, changed, or outside.
    """
    folder = local_path(folder)
    path = folder / MANIFEST
    try:
        manifest = read_json(path, LARGEST)
        version = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not the manifest of an export, perhaps cut short; {AGAIN}") from error
    if version != FORMAT:
        raise UserError(f"{path} has the format {version!r:.20}, and this version of mmjax reads {FORMAT}; {AGAIN}")
    try:
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        manifest["step"], manifest["fingerprint"] = int(manifest["step"]), str(manifest["fingerprint"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} was changed: it does not list files, step and fingerprint; {AGAIN}") from error
    for name in (CONFIG, PARAMETERS):
        if name not in files:
            raise UserError(f"{path} was changed: it does not list {name}; {AGAIN}")
    for name, (size, digest) in files.items():
        problem = _problem(folder, name, size, digest)
        if problem is not None:
            raise UserError(f"{folder / MANIFEST}: {problem}; copy the export once more, or {AGAIN}")
    return manifest


def _problem(folder: Path, name: str, size: int, digest: str) -> str | None:
    """How a listed file differs from what was written; None if it does not."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or not name.isprintable() or "\\" in name:
        return f"it lists {name!r}, which is not a file in this folder"
    path = folder.joinpath(*parts)
    if path.resolve() != folder.resolve().joinpath(*parts):
        return f"{name} is a link, and may lead outside this folder"
    try:
        found = path.stat().st_size
        if found < size:
            return f"{name} is cut short: {found:,} bytes of {size:,}"
        if found > size or sha256(path) != digest:
            return f"{name} was changed: it is not what its SHA-256 says"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file in hexadecimal. Raises OSError for anything else."""
    check_regular_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizers(data: Data, folder: str | Path) -> Data:
    """The data with the tokenizers of an export. Raises UserError where one is missing."""
    folder = local_path(folder) / TOKENIZERS

    def load(name: str, input: Input) -> Input:
        stored = folder / f"{name}.json"

        def refuse() -> Any:
            raise UserError(f"{stored} is missing, the tokenizer or the classes of {name}; {AGAIN}")

        if input.tokenizer_file is not None and not stored.is_file():
            refuse()
        return input.fit_tokenizers(Corpus(refuse, name, folder), stored)

    return chz.replace(data, inputs={name: load(name, input) for name, input in data.inputs.items()})


class ExportedCheckpoint:
    """The checkpoint in an export, with those methods of `mmjax.checkpoint.manager.Checkpoints` that read.

    Attributes:
        step: the step of the run that was exported.
    """

    def __init__(self, folder: str | Path):
        """Raises UserError where the export is damaged or of another version."""
        self.step: int = read_manifest(folder)["step"]
        self._path = local_path(folder) / PARAMETERS

    def find(self, step: int | None) -> int:
        """Its step. Raises UserError for another."""
        if step not in (None, self.step):
            raise UserError(f"{self._path.parent} is an export of step {self.step}, and has no step {step}")
        return self.step

    def contents(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of the parameters, called "model/NAME"."""
        with _open(self._path) as tensors:
            return {f"{MODEL}{name}": tensors.type_of(name) for name in sorted(tensors.parameters)}

    def restore(self, abstract: dict[str, jax.ShapeDtypeStruct], step: int, *, partial: bool) -> Restored:
        """The parameters that are asked for, in the shardings that are asked for."""
        with _open(self._path) as tensors:
            found = {name: tensors.read(name.removeprefix(MODEL), leaf) for name, leaf in abstract.items()}
        return Restored(found, {}, step)

    def restore_model(self, model: Model, features: dict[str, Feature], rules: Rules) -> Multimodal:
        """The model, built on the current mesh; every device reads its own part of a parameter.

        Raises UserError where the parameters are not those of this model.
        """
        build = functools.partial(build_model, model=model, features=features, rules=rules)
        wanted = jax.eval_shape(build, jax.random.key(0))
        names = {name for name, _ in named_leaves(wanted)}
        with _open(self._path) as tensors:
            for problem, odd in (
                ("lacks", names - tensors.parameters),
                ("has an unknown", tensors.parameters - names),
            ):
                if odd:
                    raise UserError(f"{self._path} {problem} parameter {min(odd)}: it is not of the model in {CONFIG}")
            leaves = [tensors.read(name, leaf) for name, leaf in named_leaves(wanted)]
        return jax.tree.unflatten(jax.tree.structure(wanted), leaves)

    def close(self) -> None:
        """Nothing is left open."""


@contextlib.contextmanager
def _open(path: Path) -> Iterator["_Tensors"]:
    """Raises UserError where the file is not safetensors."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            yield _Tensors(path, tensors)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not valid safetensors ({error}); {AGAIN}") from error


class _Tensors:
    """The parameters in a file, of which those that are int8 have their scales beside them.

    Attributes:
        parameters: their names.
    """

    def __init__(self, path: Path, tensors: Any):
        self._path, self._tensors, names = path, tensors, {*tensors.keys()}
        self._scaled = {name for name in names if name + SCALE in names}
        self.parameters = names - {name + SCALE for name in self._scaled}

    def type_of(self, name: str) -> jax.ShapeDtypeStruct:
        """A parameter's shape, and its dtype once it is dequantized."""
        found = self._tensors.get_slice(name)
        shape = tuple(found.get_shape())
        if name in self._scaled:
            return jax.ShapeDtypeStruct(shape, np.float32)
        return jax.ShapeDtypeStruct(shape, (found[:0] if shape else self._tensors.get_tensor(name)).dtype)

    def read(self, name: str, leaf: Any) -> jax.Array:
        """A parameter in the sharding of `leaf`, of which only shape and dtype are there."""
        whole = self._tensors.get_slice(name)
        shape = tuple(whole.get_shape())
        if shape != leaf.shape:
            raise UserError(
                f"{self._path}: {name} has the shape {[*shape]}, and the model in {CONFIG} has {[*leaf.shape]}"
            )
        scales = self._tensors.get_slice(name + SCALE) if name in self._scaled else None
        scale_shape = [] if scales is None else scales.get_shape()
        if scales is not None and [max(sizes) for sizes in zip(shape, scale_shape, strict=False)] != [*shape]:
            raise UserError(f"{self._path}: {name}{SCALE} has the shape {scale_shape}, which does not fit {[*shape]}")

        def part(index: Any) -> np.ndarray:
            found = whole[index] if shape else self._tensors.get_tensor(name)
            if scales is not None:
                of_all = (slice(None) if size == 1 else each for size, each in zip(scale_shape, index, strict=True))
                found = dequantize_one(found, scales[tuple(of_all)])
            if found.dtype != leaf.dtype:
                raise UserError(f"{self._path}: {name} is {found.dtype}, and the model in {CONFIG} has {leaf.dtype}")
            return found

        if leaf.sharding is None:
            return jnp.asarray(part(tuple(slice(None) for _ in shape)))
        return jax.make_array_from_callback(shape, NamedSharding(jax.sharding.get_mesh(), leaf.sharding.spec), part)
