"""Atomic building of TFDS data sets, and reading them without TensorFlow."""

import abc
import contextlib
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import numpy as np

from mmjax.data import mirror
from mmjax.data.sources.base import Source, source_name
from mmjax.errors import UserError
from mmjax.files import local_path, open_regular, read_regular

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

LARGEST_JSON = 2**26  # bytes of a file that describes a data set


def is_built(folder: Path) -> bool:
    """Whether `folder` holds a complete data set: TFDS builds elsewhere and renames at the end."""
    mirror.download(folder)
    return (folder / "dataset_info.json").is_file()


def build(builder: "tfds.core.DatasetBuilder") -> None:
    """Builds the data set unless another process does; external failures become UserErrors."""
    import requests
    import tensorflow_datasets as tfds

    folder = Path(builder.data_dir)
    try:
        with _lock(folder):
            if is_built(folder):
                return
            if folder.exists():
                raise UserError(f"{folder} is not a complete data set: delete it and run the command again")
            for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # of a build that was killed
                shutil.rmtree(leftover)
            print(f"building {builder.info.full_name} in {folder}", file=sys.stderr)
            # Standard output is for the result only, not for TFDS's messages.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
            mirror.upload(folder)
    except (
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
        requests.RequestException,
    ) as error:
        raise UserError(
            f"a download failed ({_line(error)}): get the files by hand and name their manual_dir"
        ) from error
    except (OSError, RuntimeError) as error:  # ArrayRecord has only RuntimeError to say that the disk is full
        raise UserError(f"{folder} cannot be built: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Locks a data set against other builders, across machines if the file system supports that."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / ".lock", "w", opener=_open_at_once) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file as `open` does, but raises an error for a pipe instead of waiting for its reader."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


@chz.chz
class BuiltSource(Source):
    """A source that TFDS builds once, as a folder of ArrayRecord files; its fields select the data set."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    @abc.abstractmethod
    def _folder(self, data_dir: str) -> Path:
        """The folder of the data set."""

    @abc.abstractmethod
    def _builder(self) -> "Callable[..., tfds.core.DatasetBuilder]":
        """The TFDS builder; a function, because importing it imports TFDS."""

    def built_folder(self, data_dir: str) -> Path:
        """The folder of the data set; UserError, naming the command to run, where it is not built."""
        folder = self._folder(data_dir)
        if not is_built(folder):
            name = source_name(type(self))
            kind = "".join(f" {field}={getattr(self, field)}" for field in chz.chz_fields(self))
            raise UserError(
                f"there is no {name}{kind and ' with'}{kind} in {data_dir}: run `python -m launch.prepare {name}{kind} "
                f"data_dir={data_dir}`, with manual_dir=FOLDER if the raw files are at hand"
            )
        return folder

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        folder = self._folder(data_dir)
        if not is_built(folder):
            raw = local_path(manual_dir) if manual_dir else None
            build(self._builder()(data_dir=mirror.data_root(data_dir), manual_dir=raw))
        return folder


class StoredExamples:
    """One split of a built data set as arrays, numbers and text; thread-safe and picklable."""

    def __init__(self, folder: Path, split: str):
        """Raises UserError where the folder's content is damaged."""
        try:
            self._open(folder, split)
        except UserError:
            raise
        except Exception as error:  # TFDS takes its JSON files for what it wrote, and raises whatever comes of others
            reason = f"{type(error).__name__}: {_line(error)[:200]}"
            raise UserError(f"{folder} is damaged ({reason}): delete it and prepare the data again") from error

    def _open(self, folder: Path, split: str) -> None:
        import tensorflow_datasets as tfds

        for path in folder.glob("*.json"):
            read_regular(path, LARGEST_JSON)
        builder = tfds.builder_from_directory(folder)
        info = builder.info
        for path, length in zip(info.splits[split].filepaths, info.splits[split].shard_lengths, strict=True):
            _check_file(Path(path), length)
        # TFDS's own decoding takes 0.1 ms an example, three times as long as reading it; `__getitem__` takes 0.01 ms.
        self._source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._arrays = {
            name: (feature.np_dtype, tuple(-1 if size is None else size for size in feature.shape))
            for name, feature in info.features.items()
            if feature.shape
        }
        self._split = split
        self.fingerprint = f"{info.full_name}/{info.metadata['digest']}/{split}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`; empty where its bytes on disk are damaged."""
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            content = self._source[index]
        except RuntimeError:  # a block's checksum is wrong
            return {}
        return {
            name: self._decode(name, feature)
            for name, feature in tf_example_pb2.Example.FromString(content).features.feature.items()
        }

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"

    def _decode(self, name: str, feature: Any) -> np.ndarray | int | str:
        if name in self._arrays:
            dtype, shape = self._arrays[name]
            return np.frombuffer(feature.bytes_list.value[0], dtype).reshape(shape)
        if feature.HasField("int64_list"):
            return feature.int64_list.value[0]
        return feature.bytes_list.value[0].decode()


def _check_file(path: Path, length: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with open_regular(path):
            reader = ArrayRecordReader(os.fspath(path))
        whole = reader.num_records() == length
        reader.close()
    except (OSError, RuntimeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: delete {path.parent} and prepare the data again")
