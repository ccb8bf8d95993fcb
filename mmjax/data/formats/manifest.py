"""Manifest: JSON Lines, CSV, TSV, and COCO captions."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz

from mmjax.buckets import open_bytes
from mmjax.data.formats.base import FileSource, Sizes, files_below, typed
from mmjax.data.formats.index import Entry
from mmjax.errors import UserError
from mmjax.files import read_json

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
ANNOTATIONS = "annotations"  # the folder of COCO's files, beside those of its pictures
LARGEST_LINE = 2**26  # characters of one row


@chz.chz
class Manifest(FileSource):
    """Rows of JSON Lines, CSV or TSV files, or COCO captions (JSON); columns are raw fields.

    Columns that name picture or sound files hold these files' bytes. CSV and TSV begin with the columns' names; columns
    of numbers are numbers. Of COCO captions `image` is the picture, `captions` the list of its captions, and `id` its
    number; pictures lie beside the file, or beside its folder `annotations` in one that is called as the end of the
    file's name: annotations/captions_train2017.json has those of train2017/.
    """

    def files(self, path: Path) -> Sizes:
        return files_below(path, SUFFIXES)

    def _media_root(self, root: Path) -> Path:
        beside = self.root is None and root.name == ANNOTATIONS and self.path.endswith(".json")
        return root.parent if beside else super()._media_root(root)

    def entries(self, root: Path, files: Sizes) -> Iterator[Entry]:
        for name in files:
            path = root / name
            if path.suffix.lower() == ".json":
                for place, values in _coco(path):
                    if self.root is None and root.name == ANNOTATIONS:
                        values["image"] = f"{path.stem.rpartition('_')[2]}/{values['image']}"
                    yield Entry(name, f"{name}:{place}", values)
                continue
            read = {".csv": _csv, ".tsv": _csv}.get(path.suffix.lower(), _json_lines)
            for place, values in read(path):
                yield Entry(name, f"{name}:{place}", values)


def is_coco(path: Path) -> bool:
    """Whether a file begins as COCO captions do."""
    with contextlib.suppress(OSError), open_bytes(path) as file:
        start = file.read(2**20)
        return b'"images"' in start or b'"annotations"' in start
    return False


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line that is not empty, and what it holds."""
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE), b""), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                # Its own number of a line is that within this one.
                reason = f"{error.msg}, at sign {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{path}, line {number}: not JSON ({reason}); correct or remove the line") from None
            if not isinstance(values, dict):
                raise UserError(f'{path}, line {number}: not an object of columns, such as {{"image": "a.png"}}')
            yield number, values


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, the first below the names being 1, and what it holds."""
    csv.field_size_limit(LARGEST_LINE)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)

        def next_row() -> list[str] | None:
            begun = reader.line_num + 1
            try:
                return next(reader, None)
            except UnicodeDecodeError:
                raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
            except csv.Error as error:
                raise UserError(f"{path}: the row of line {begun} cannot be read ({error}); correct it") from None

        def rows() -> Iterator[dict[str, str | None]]:
            names = next_row() or []
            if not names or len(set(names)) < len(names):
                raise UserError(f"{path}: the first line must name the columns, each by a name of its own")
            other = next((sign for sign in ";\t|" if len(names) == 1 and sign in names[0]), None)
            if other is not None:
                raise UserError(
                    f"{path} seems to separate columns by {other!r}: save it with commas, or as .tsv with tabs"
                )
            begun = reader.line_num + 1
            while (row := next_row()) is not None:
                if row and len(row) != len(names):
                    raise UserError(
                        f"{path}, line {begun}: {len(row)} values where there are {len(names)} columns; correct it"
                    )
                if row:
                    yield dict(zip(names, row, strict=True))
                begun = reader.line_num + 1

        yield from enumerate(typed(rows()), 1)


def _coco(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each picture of a COCO captions file with all its captions."""
    try:
        content = read_json(path)
        captions: dict[Any, list[str]] = {}
        for each in content["annotations"]:
            captions.setdefault(each["image_id"], []).append(each["caption"])
        for number, image in enumerate(content["images"], 1):
            values = {"id": image["id"], "image": image["file_name"], "captions": captions.get(image["id"])}
            yield number, values
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a COCO captions file (images with id and file_name, annotations with image_id and "
            f"caption): {type(error).__name__} {error}"
        ) from None
