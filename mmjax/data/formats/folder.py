"""Folder: pictures, sounds and texts as files, one subfolder a class, or with a metadata file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz

from mmjax.data.formats.arrow import import_pyarrow
from mmjax.data.formats.base import UNREADABLE, FileSource, Sizes, files_below
from mmjax.data.formats.index import Entry
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.media import FIELDS, TEXT
from mmjax.data.formats.splits import WORDS
from mmjax.errors import UserError
from mmjax.files import read_regular

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
LARGEST_TEXT = 2**20


# Files beside the data that are not data, by their stems.
NOTES = ("readme", "license", "licence")


@chz.chz
class Folder(FileSource):
    """Files in folders: those of one stem are one example, and its subfolder is its `label`.

    They are the fields `image`, `audio` and `text`. So `cat/0001.jpg`, `cat/0001.txt` and `cat/0001.wav` make one
    example of the class cat; a JSON file of the same stem adds columns. Where a folder holds metadata.csv, .jsonl
    or .parquet, each of its rows is an example, whose `file_name` (or a column ending in `_file_name`) names files,
    as in Hugging Face's ImageFolder and AudioFolder. A first folder called train, val or test makes the split and
    is not a class.
    """

    def files(self, path: Path) -> Sizes:
        return files_below(path, (*FIELDS, ".json", *METADATA))

    def entries(self, root: Path, files: Sizes) -> Iterator[Entry]:
        described = [name for name in files if Path(name).name in METADATA]
        if described:
            for name in described:
                yield from _metadata(root, name, files)
            return
        examples: dict[str, dict[str, str]] = {}
        for name in files:
            stem, suffix = os.path.splitext(name)
            if Path(stem).name.lower() in NOTES:
                continue
            field = FIELDS.get(suffix.lower(), "json")
            others = examples.setdefault(stem, {})
            if field in others:
                raise UserError(
                    f"{root / name} and {root / others[field]} are both the {field} of one example: move one"
                )
            others[field] = name
        for stem, found in sorted(examples.items()):
            folders = [part for part in stem.split("/")[:-1] if part.lower() not in WORDS]
            values: dict[str, Any] = {"label": folders[0]} if folders else {}
            if "json" in found:
                values |= _json(root / found.pop("json"))
            for field, name in found.items():
                values[field] = _text(root / name) if name.lower().endswith(TEXT) else name
            yield Entry(stem, stem, values)


def _metadata(root: Path, name: str, files: Sizes) -> Iterator[Entry]:
    """The examples of a metadata file, with the names of files relative to the root."""
    below = Path(name).parent
    if name.endswith(".parquet"):
        rows: Iterator[dict[str, Any]] = iter(import_pyarrow().parquet.read_table(root / name).to_pylist())
    else:
        rows = (entry.values for entry in Manifest(path="").entries(root, {name: files[name]}))
    for number, row in enumerate(rows, 1):
        values: dict[str, Any] = {}
        for column, value in row.items():
            if value is not None and (column == "file_name" or column.endswith("_file_name")):
                path = (below / value).as_posix()
                kind = FIELDS.get(os.path.splitext(value)[1].lower(), "file")
                values[kind if column == "file_name" else column.removesuffix("_file_name")] = path
            else:
                values[column] = value
        if "file_name" not in row and not any(column.endswith("_file_name") for column in row):
            raise UserError(f"{root / name}: row {number} has no column file_name; it has {', '.join(row)}")
        yield Entry(name, f"{name}:{number}", values)


def _text(path: Path) -> str | dict[str, str]:
    try:
        return read_regular(path, LARGEST_TEXT).decode()
    except UnicodeDecodeError:
        return {UNREADABLE: f"{path.name} is not UTF-8 text"}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, LARGEST_TEXT))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); correct or remove it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no object of columns; correct or remove it")
    return values
