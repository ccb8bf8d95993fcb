"""The TFDS builder of emoji: raw files, given or downloaded, to ArrayRecord files."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data.archives import open_zip
from mmjax.data.sources.constants import EMOJI_GROUPS as GROUPS
from mmjax.data.sources.constants import EMOJI_VERSION as VERSION
from mmjax.data.sources.constants import SKIN_TONE
from mmjax.errors import UserError
from mmjax.files import read_regular

NOTO = "b3e3051a088047d19fd4d49b1c3ac42fb8c3aaf8"
GEMOJI = "5476a66d2794e0d1551b1f96e449afc72e9f7bec"
URLS = {
    "noto": f"https://github.com/googlefonts/noto-emoji/archive/{NOTO}.zip",
    "gemoji": f"https://github.com/github/gemoji/archive/{GEMOJI}.zip",
}
PICTURES, TABLE = "noto_emoji_png72.zip", "emoji.jsonl"
# Of 100 base names, those whose hash falls below the first number are validation, below the second test.
HELD_OUT = (10, 20)
SPLITS = ("train", "validation", "test")


class Row(NamedTuple):
    """One emoji: its image's file, name, group, tags, whether it has a skin tone, and its split."""

    file: str
    name: str
    group: str
    tags: tuple[str, ...]
    skin_tone: bool
    split: str


class EmojiBuilder(tfds.core.ShardBasedBuilder):
    """Noto's emoji with their Unicode names; see mmjax.data.sources.emoji."""

    name = "emoji"
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS declares it so)
        tfds.core.BuilderConfig(name="one", description="without variants in other skin tones"),
        tfds.core.BuilderConfig(name="all", description="with variants in other skin tones"),
    ]

    def __init__(self, *, manual_dir: Path | None = None, **kwargs: Any):
        """`manual_dir` holds noto_emoji/ with the image archive and a table; without it, both are downloaded."""
        super().__init__(file_format="array_record", **kwargs)
        self._manual_dir = manual_dir

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://github.com/googlefonts/noto-emoji",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
                    "text": tfds.features.Text(),
                    "group": tfds.features.Scalar(np.int64),
                    "tags": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, list[Callable]]:
        if self._manual_dir:
            folder = self._manual_dir / "noto_emoji"
            rows, archive, prefix = read_table(folder / TABLE), folder / PICTURES, ""
        else:
            paths = {name: Path(path) for name, path in dl_manager.download(URLS).items()}
            rows, archive = read_gemoji(paths["gemoji"]), paths["noto"]
            prefix = f"noto-emoji-{NOTO}/png/72/"
        rows = [row for row in rows if self.builder_config.name == "all" or not row.skin_tone]
        pictures = read_pictures(archive, prefix, [row.file for row in rows])
        # Unicode names more than has been drawn; a picture that cannot be read is kept as absent.
        rows = [row for row in rows if row.file in pictures]
        total = hashlib.sha256(repr(rows).encode())
        for _, content in sorted(pictures.items()):
            total.update(content)
        self.info.metadata["digest"] = total.hexdigest()
        by_split = {split: [row for row in rows if row.split == split] for split in SPLITS}
        if not all(by_split.values()):
            raise UserError(f"{archive} and its table have no pictures for one of {', '.join(SPLITS)}")
        return {split: [functools.partial(examples, mine, pictures)] for split, mine in by_split.items()}


def examples(rows: list[Row], pictures: Mapping[str, bytes]) -> Iterator:
    """The rows in the form that TFDS stores."""
    for place, row in enumerate(rows):
        image = np.frombuffer(pictures[row.file], np.uint8)
        tags = ", ".join(row.tags)
        yield place, {"image": image, "text": row.name, "group": GROUPS.index(row.group), "tags": tags}


def read_table(path: Path) -> list[Row]:
    """The rows of a JSON-lines file with the keys of `Row` (the validation split is "val")."""
    rows: list[Row] = []
    try:
        for line in read_regular(path).decode().splitlines():
            fields = json.loads(line)
            row = Row(
                fields["file"],
                fields["name"],
                fields["group"],
                tuple(fields["tags"]),
                bool(fields["skin_tone"]),
                {"val": "validation"}.get(fields["split"], fields["split"]),
            )
            if row.group not in GROUPS or row.split not in SPLITS:
                raise ValueError(f"no group {row.group!r} or no split {row.split!r}")
            "".join([row.file, row.name, *row.tags]).encode()  # they are texts, and valid ones
            rows.append(row)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a table of emoji (line {len(rows) + 1}: {error})") from None
    return rows


def read_gemoji(archive: Path) -> list[Row]:
    """The rows of the repository github/gemoji: Unicode's own list, and its tags."""
    inside = f"gemoji-{GEMOJI}/"
    try:
        with open_zip(archive) as (_, read):
            listed = read(f"{inside}vendor/unicode-emoji-test.txt").decode()
            tagged = {
                _file(entry["emoji"]): tuple(entry["tags"]) for entry in json.loads(read(f"{inside}db/emoji.json"))
            }
            "".join(tag for tags in tagged.values() for tag in tags).encode()  # they are texts, and valid ones
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{archive} is not the archive of {URLS['gemoji']} ({error}): delete it and try again"
        ) from None
    return make_rows(listed, tagged)


def make_rows(listed: str, tags: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """The fully qualified emoji of Unicode's emoji-test.txt, with `tags` by file.

    Splits are by the hash of the base name, which is the part before a colon: variants of one emoji are called "name:
    variant".
    """
    rows, group = [], ""
    for line in listed.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        found = re.fullmatch(r"[0-9A-F ]+; fully-qualified\s+# (\S+) E[\d.]+ (.+)", line)
        if found and group in GROUPS:
            file, name = _file(found[1]), found[2].strip()
            place = int.from_bytes(hashlib.sha256(name.partition(":")[0].encode()).digest()[:4], "big") % 100
            split = "validation" if place < HELD_OUT[0] else "test" if place < HELD_OUT[1] else "train"
            rows.append(Row(file, name, group, tags.get(file, ()), SKIN_TONE.search(name) is not None, split))
    return rows


def _file(emoji: str) -> str:
    """The name of an emoji's image: its code points in hexadecimal, without variation selectors."""
    return "emoji_u" + "_".join(f"{ord(sign):04x}" for sign in emoji if sign != "\ufe0f") + ".png"


def read_pictures(archive: Path, prefix: str, files: Iterable[str]) -> dict[str, bytes]:
    """The PNG files by name, read without unpacking the archive; b"" for a damaged one."""
    pictures: dict[str, bytes] = {}
    try:
        with open_zip(archive) as (inside, read):
            for file in files:
                if prefix + file in inside:
                    try:
                        pictures[file] = read(prefix + file)
                    except OSError:
                        pictures[file] = b""
    except FileNotFoundError:
        raise UserError(f"{archive} is missing: it is the archive of Noto's pictures") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error}): fetch it again") from None
    return pictures
