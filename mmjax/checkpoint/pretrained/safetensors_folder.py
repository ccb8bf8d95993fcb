"""A model in Hugging Face's layout: config.json beside model.safetensors, or beside its shards and their index."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mmjax.errors import UserError
from mmjax.files import local_path

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# How names end in older files, and how in newer ones: LayerNorm's parameters, and PyTorch's weight norm.
ENDINGS = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")


def find_folder(path: str) -> Path:
    """The folder of a model: a local one, or the snapshot of a name such as org/model in Hugging Face's local cache.

    Nothing is downloaded. Raises UserError where there is none.
    """
    folder = local_path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{path} is a file; give the folder that holds it with its {CONFIG}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"there is no folder {path}; for a model in Hugging Face's cache install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(path, local_files_only=True))
    except Exception as error:  # the library has a kind of error for each reason
        raise UserError(
            f"there is no folder {path}, and no model of that name in Hugging Face's local cache"
        ) from error


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or is something else."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the whole folder of the model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return data


class SafetensorsFolder:
    """The tensors of a folder by name, as newer files call them; what is not asked for is not read.

    Only safetensors are read: pickles can run code. Raises UserError where a file is missing, truncated, a pickle, or
    lies outside the folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_json_file(folder / CONFIG)
        self._files = {name: file for file in self._shards() for name in self._names(file)}
        self._full: dict[str, str] = {}
        self.strip("")
        if (folder / INDEX).is_file():
            listed = read_json_file(folder / INDEX).get("weight_map", {})
            if missing := sorted(set(listed) - set(self._files)):
                raise UserError(f"{folder / INDEX} lists {missing[0]} in {listed[missing[0]]}, which does not hold it")

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return sorted(self._full)

    def strip(self, prefix: str) -> None:
        """Leaves a prefix out of the names, where they have it: a model with a task's head is saved with one."""
        self._full = {_newer(name.removeprefix(prefix)): name for name in self._files}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header."""
        name = self._full[name]
        with self._open(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str, ranges: Sequence[slice]) -> np.ndarray:
        """A part of a tensor, in float32 if it is of floats: only its bytes are read."""
        name = self._full[name]
        with self._open(self._files[name]) as file:
            part = file.get_slice(name)
            array = part[tuple(ranges)] if ranges else file.get_tensor(name)
        return array.astype(np.float32) if array.dtype.kind in "fV" or array.dtype.name == "bfloat16" else array

    def _shards(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.is_file():
            if (self.folder / WEIGHTS).is_file():
                return [self.folder / WEIGHTS]
            pickles = sorted(path.name for path in self.folder.glob("*") if path.suffix in PICKLES)
            if pickles:
                raise UserError(
                    f"{self.folder} has its weights in {pickles[0]}, which may run code when it is read; save them as "
                    f"{WEIGHTS}, the only format that is read"
                )
            raise UserError(f"{self.folder} has no {WEIGHTS} and no {INDEX}")
        listed = read_json_file(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError(f"{index} has no weight_map from tensors to files")
        files = []
        for name in sorted(set(listed.values())):
            if Path(name).name != name:
                raise UserError(f"{index} names {name!r}, which is not a file in its folder")
            if not (self.folder / name).is_file():
                raise UserError(f"{self.folder} lacks the shard {name}, which {INDEX} names")
            files.append(self.folder / name)
        return files

    def _names(self, file: Path) -> list[str]:
        with self._open(file) as opened:
            return list(opened.keys())

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        try:
            with safe_open(file, framework="numpy") as opened:
                yield opened
        except SafetensorError as error:
            raise UserError(f"{file} is not a whole safetensors file: {error}; copy or download it again") from error
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error}") from error


def _newer(name: str) -> str:
    for old, new in ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
