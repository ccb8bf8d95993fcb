"""Which format the files at a path have."""

import itertools
from pathlib import Path, PurePosixPath

import chz

from mmjax.buckets import find_files, is_remote, nothing_there
from mmjax.data.formats.array_record import META, ArrayRecord
from mmjax.data.formats.arrow import HuggingFace, Parquet
from mmjax.data.formats.base import FileSource
from mmjax.data.formats.folder import METADATA, Folder
from mmjax.data.formats.manifest import ANNOTATIONS, Manifest, is_coco
from mmjax.data.formats.media import FIELDS
from mmjax.data.formats.splits import SPLITS, WORDS, SplitByColumn, SplitByName
from mmjax.data.formats.web_dataset import WebDataset
from mmjax.data.sources.base import Source
from mmjax.errors import UserError
from mmjax.files import to_path

BY_SUFFIX: dict[str, type[FileSource]] = {
    ".arrow": HuggingFace,
    ".tar": WebDataset,
    ".parquet": Parquet,
    ".jsonl": Manifest,
    ".ndjson": Manifest,
    ".csv": Manifest,
    ".tsv": Manifest,
    ".json": Manifest,
}
MOST_COCO = 20  # JSON files of one data set's captions
LOOKED_AT = 10_000  # files below a folder
KEYS = ("id", "key", "uid", "uuid")  # columns that may name examples


def recognise(path: str, data_dir: str | None = None) -> Source:
    """The source that reads the files at a path: a folder, a file, or a pattern with *.

    With a `data_dir` for its index, the columns that name the examples and their splits are looked for, too. Raises
    UserError where there is nothing, or nothing that is known.
    """
    source = _recognise(path)
    return source if data_dir is None else find_columns(source, data_dir)


def find_columns(source: Source, data_dir: str) -> Source:
    """The source with columns for names and splits of examples, where it has such columns and names none."""
    if not isinstance(source, FileSource):
        return source
    if source.key is None:
        source = _name_examples(source, data_dir)
    return source if source.split is not None else _split_by_column(source, data_dir)


def _name_examples(source: FileSource, data_dir: str) -> FileSource:
    """The source with a column that names its examples, if one is so called and differs for each."""
    for key in KEYS:
        named = chz.replace(source, key=key)
        try:
            named.prepare(data_dir)
        except UserError:
            continue
        return named
    return source


def _split_by_column(source: FileSource, data_dir: str) -> FileSource:
    """The source, divided by its column `split` where it has one whose values name the splits."""
    if SplitByName().splits(source.names) != ():
        return source
    values: set[str] = set()
    for part in source.splits:
        # To the end: the rows of one split may come after all those of another.
        for value in source.open(data_dir, part).column("split"):
            values.update(() if value is None else (str(value),))
            if len(values) > len(SPLITS):
                return source
    named = {WORDS[value.lower()]: value for value in sorted(values) if value.lower() in WORDS}
    if "train" not in named:
        return source
    split = SplitByColumn(train=named["train"], validation=named.get("validation"), test=named.get("test"))
    return chz.replace(source, split=split)


def _recognise(path: str) -> Source:
    place = to_path(path)
    if place.is_dir():
        return _recognise_folder(path, place)
    if not place.is_file() and not any(letter in place.name for letter in "*?["):
        raise UserError(f"{path}: {nothing_there(place)}")
    suffix = place.suffix.lower()
    if suffix not in BY_SUFFIX:
        raise UserError(f"{path}: files ending in {suffix or 'nothing'} are not read; known are {', '.join(BY_SUFFIX)}")
    return BY_SUFFIX[suffix](path=path)


def _recognise_folder(path: str, place: Path) -> Source:
    if (place / META).is_file():
        return ArrayRecord(path=path)
    names = _names(place)
    suffixes = {name.suffix.lower() for name in names}
    for suffix in (".arrow", ".tar"):
        if suffix in suffixes:
            return BY_SUFFIX[suffix](path=path)
    if any(name.name in METADATA for name in names):
        return Folder(path=path)
    manifests = sorted(
        {name.suffix.lower() for name in names if len(name.parts) == 1 and name.suffix.lower() in BY_SUFFIX}
    )
    media = suffixes & {*FIELDS}
    if ".parquet" in suffixes and not media:
        return Parquet(path=path)
    if len(manifests) == 1 and manifests != [".json"]:
        # Files of this kind only: others may describe the data set.
        return Manifest(path=f"{path.rstrip('/')}/*{manifests[0]}")
    coco = [name for name in names if name.suffix.lower() == ".json" and len(name.parts) <= 2]
    coco = [name for name in coco if len(name.parts) == 1 or name.parts[0] == ANNOTATIONS]
    if 0 < len(coco) <= MOST_COCO and all(is_coco(place / name) for name in coco):
        folder = path.rstrip("/") if len(coco[0].parts) == 1 else f"{path.rstrip('/')}/{ANNOTATIONS}"
        return Manifest(path=f"{folder}/*.json")
    if media:
        return Folder(path=path)
    shown = ", ".join(sorted(suffixes - {""})[:10]) or "no files"
    raise UserError(f"{path} holds nothing that is read (it has {shown}); known are {', '.join([*BY_SUFFIX, *FIELDS])}")


def _names(place: Path) -> list[PurePosixPath]:
    """The first files below a folder, by path."""
    if is_remote(place):
        return [PurePosixPath(name) for name in itertools.islice(find_files(place), LOOKED_AT)]
    return [PurePosixPath(found.relative_to(place)) for found in itertools.islice(place.rglob("*"), LOOKED_AT)]
