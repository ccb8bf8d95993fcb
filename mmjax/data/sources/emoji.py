"""emoji: Noto's pictures with their Unicode names, as TFDS keeps them in ArrayRecord files."""

import re
from pathlib import Path
from typing import Any, Literal

import chz

from mmjax.data.sources import building
from mmjax.data.sources.base import Records, Source
from mmjax.errors import UserError
from mmjax.files import local_path

VERSION = "1.0.0"
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)

TONE = re.compile(r"(?:medium-)?(?:light|dark) skin tone|medium skin tone")


@chz.chz
class Emoji(Source):
    """Pictures of emoji, 72 pixels wide and high, with their names; about 3,400, or 1,600 without skin tones.

    Raw fields: `image`, a transparent PNG; `text`, the name; `group`, an index into GROUPS; `tags`, words that are said
    of it, and its `skin_tone`, each left out where there is none. Variants of one emoji, in other skin tones or of
    other gender, are in the same split.
    """

    skin_tones: Literal["one", "all"] = chz.field(default="one", doc="whether there are variants in other skin tones")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def _folder(self, data_dir: str) -> Path:
        return local_path(data_dir) / "emoji" / self.skin_tones / VERSION

    def open(self, data_dir: str, split: str) -> Records:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            kind = f"skin_tones={self.skin_tones}"
            raise UserError(
                f"there is no emoji with {kind} in {data_dir}: run `python -m launch.prepare emoji {kind} "
                f"data_dir={data_dir}`, with manual_dir=FOLDER if the raw files are at hand"
            )
        return EmojiRecords(folder, split)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        folder = self._folder(data_dir)
        if not building.is_built(folder):
            from mmjax.data.sources.emoji_builder import EmojiBuilder

            raw = local_path(manual_dir) if manual_dir else None
            building.build(EmojiBuilder(data_dir=local_path(data_dir), config=self.skin_tones, manual_dir=raw))
        return folder


class EmojiRecords:
    """The examples of one split of a built emoji."""

    def __init__(self, folder: Path, split: str):
        self._stored, self._split = building.Stored(folder, split), split
        self.fingerprint = self._stored.fingerprint

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._stored[index]
        if "image" in example:
            example["image"] = example["image"].tobytes()
        if tone := TONE.search(example.get("text", "")):
            example["skin_tone"] = tone[0]
        # The builder keeps a picture that could not be read, and tags that there are none of, as nothing.
        return {name: value for name, value in example.items() if value not in ("", b"")}

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"
