"""emoji: Noto's images with their Unicode names, stored by TFDS in ArrayRecord files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chz

from mmjax.data.mirror import data_root
from mmjax.data.sources import building
from mmjax.data.sources.base import Records
from mmjax.data.sources.constants import EMOJI_GROUPS, SKIN_TONE
from mmjax.data.sources.constants import EMOJI_VERSION as VERSION

GROUPS = EMOJI_GROUPS


@chz.chz
class Emoji(building.BuiltSource):
    """Images of emoji, 72 x 72 pixels, with their names; about 3,400, or 1,600 without skin tones.

    Raw fields: `image`, a transparent PNG; `text`, the name; `group`, an index into GROUPS; `tags`, keywords, and
    `skin_tone`, each left out where there is none. Variants of one emoji, in other skin tones or genders, are in the
    same split.
    """

    skin_tones: Literal["one", "all"] = chz.field(default="one", doc="whether there are variants in other skin tones")

    def _folder(self, data_dir: str) -> Path:
        return data_root(data_dir) / "emoji" / self.skin_tones / VERSION

    def _builder(self) -> Callable[..., Any]:
        from mmjax.data.sources.emoji_builder import EmojiBuilder

        return functools.partial(EmojiBuilder, config=self.skin_tones)

    def open(self, data_dir: str, split: str) -> Records:
        return EmojiRecords(self.built_folder(data_dir), split)


class EmojiRecords(building.StoredExamples):
    """The examples of one split of a built emoji."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        if "image" in example:
            example["image"] = example["image"].tobytes()
        if tone := SKIN_TONE.search(example.get("text", "")):
            example["skin_tone"] = tone[0]
        # The builder keeps a picture that could not be read, and tags that there are none of, as nothing.
        return {name: value for name, value in example.items() if value not in ("", b"")}
