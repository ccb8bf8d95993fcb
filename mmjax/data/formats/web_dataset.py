"""WebDataset: tar shards in which members of one key are one example, read at random by an index."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import chz

from mmjax.buckets import open_bytes
from mmjax.data.clean import BadInput
from mmjax.data.formats.base import FileSource, Reader, Sizes, files_below
from mmjax.data.formats.index import Entry, FileCache
from mmjax.data.formats.media import FIELDS, LARGEST_FILE
from mmjax.errors import UserError

MEMBER = "$member"


@chz.chz
class WebDataset(FileSource):
    """Tar shards as the library `webdataset` writes them: members of one key are one example.

    So `0001.jpg`, `0001.txt` and `0001.json` are one. A member is a raw field by its suffix: pictures are `image`,
    sounds `audio`, .txt `text`, .cls `label`; the keys of a .json are fields, too; any other suffix is a field of
    its own, as bytes. Random access is by an index of the members' places that is made once, so no shuffle buffer
    is needed.
    """

    def files(self, path: Path) -> Sizes:
        return files_below(path, (".tar",))

    def entries(self, root: Path, files: Sizes) -> Iterator[Entry]:
        # Values that name or divide the examples are read now, all others when an example is.
        reads_values = self.key is not None or (self.split is not None and bool(self.split.columns))
        for name, (size, _) in files.items():
            with open_bytes(root / name) as file:
                for entry in _examples(root / name, name, size):
                    values = _values(file, entry) if reads_values else {}
                    yield entry._replace(values=values | entry.values)

    def reader(self, root: Path, files: Sizes) -> Reader:
        return TarReader(FileCache(root, files))


def _examples(path: Path, name: str, size: int) -> Iterator[Entry]:
    """The examples of one shard: runs of members of one key."""
    key = ""
    values: dict[str, Any] = {}
    try:
        with open_bytes(path) as file_object, tarfile.open(fileobj=file_object, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not stem:  # a hidden file
                    continue
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} is truncated in {member.name}: get the shard again")
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    if values:
                        yield Entry(name, f"{name}/{key}", values)
                    key, values = found, {}
                if suffix in values:
                    raise UserError(
                        f"{path} holds {member.name} twice: write the shard again, each key with its own name"
                    )
                values[suffix.lower()] = {MEMBER: [name, member.offset_data, member.size]}
                archive.members = []  # type: ignore[attr-defined]  # else all of them stay in memory
    except tarfile.TarError as error:
        raise UserError(
            f"{path} cannot be read as an uncompressed tar ({error}): get or write the shard again"
        ) from None
    if values:
        yield Entry(name, f"{name}/{key}", values)


def _values(file: BinaryIO, entry: Entry) -> dict[str, Any]:
    """What the JSON and the class of an example say, but for what has the name of a member."""
    found: dict[str, Any] = {}
    for suffix in {"json", "cls"} & {*entry.values}:
        _, offset, size = entry.values[suffix][MEMBER]
        file.seek(offset)
        found |= _decode(suffix, file.read(size))
    return {name: value for name, value in found.items() if name not in entry.values}


def _decode(suffix: str, content: bytes) -> dict[str, Any]:
    """The raw fields of a member."""
    if suffix == "json":
        values = json.loads(content)
        if not isinstance(values, dict):
            raise BadInput("the JSON holds no object of fields")
        return values
    field = _field(suffix)
    if suffix == "cls":
        label = content.decode().strip()
        return {field: int(label) if label.isdecimal() else label}
    return {field: content.decode() if field == "text" else content}


class TarReader(Reader):
    """Reads members at their places."""

    def __init__(self, files: FileCache):
        self._files = files

    def __call__(self, values: dict[str, Any], only: str | None = None) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for suffix, value in values.items():
            if not isinstance(value, dict) or MEMBER not in value:
                continue  # of the JSON, which is read again with the rest
            if only is not None and _field(suffix) not in (only, "json"):
                continue
            name, offset, size = value[MEMBER]
            if size > LARGEST_FILE:
                raise BadInput(f"a member .{suffix} of {size:,} bytes")
            fields |= _decode(suffix, self._files.read(name, offset, size))
        return fields


def _field(suffix: str) -> str:
    """The raw field of a member by its suffix."""
    return "label" if suffix == "cls" else FIELDS.get(f".{suffix}", suffix)
