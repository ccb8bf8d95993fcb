"""Building a TFDS data set once, whole or not at all, and reading it back without TensorFlow."""

import contextlib
import fcntl
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import open_regular, read_regular

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

LARGEST_JSON = 2**26  # bytes of a file that describes a data set


def is_built(folder: Path) -> bool:
    """Whether a whole data set lies in `folder`: TFDS builds elsewhere and renames at the end."""
    return (folder / "dataset_info.json").is_file()


def build(builder: "tfds.core.DatasetBuilder") -> None:
    """Builds the data set unless another process does so first. What goes wrong outside our control is a UserError."""
    import requests
    import tensorflow_datasets as tfds

    folder = Path(builder.data_dir)
    try:
        with _lock(folder):
            if is_built(folder):
                return
            if folder.exists():
                raise UserError(f"{folder} is there but holds no whole data set: delete it and run the command again")
            for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):  # of a build that was killed
                shutil.rmtree(leftover)
            print(f"building {builder.info.full_name} in {folder}", file=sys.stderr)
            # Standard output is for the result, and TFDS's messages about itself are for nobody.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
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
    """Keeps other processes, on other machines too if the file system can, from building the same data set."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / ".lock", "w", opener=_open_at_once) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file as `open` does, and raises an error for a pipe instead of waiting for its reader."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class Stored:
    """The examples of one split of a built data set as arrays, numbers and text; safe in threads, picklable."""

    def __init__(self, folder: Path, split: str):
        """Raises UserError where what lies in the folder is damaged."""
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
