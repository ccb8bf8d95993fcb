"""scenes: generated images of coloured shapes, with a sentence, that sentence spoken, and labels."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz
import numpy as np

from mmjax.data.mirror import data_root
from mmjax.data.sources import building, drawing, espeak
from mmjax.data.sources.base import Recording, Records, Source
from mmjax.data.sources.constants import SCENES_VERSION as VERSION
from mmjax.data.sources.drawing import Scene
from mmjax.errors import UserError

SPLITS = ("train", "validation", "test")
# Shares of all sentences that only the held-out splits use.
HELD_OUT = {"validation": 0.2, "test": 0.2}
# All of them are generated before the first is read, so that sentences are distinct.
MOST_HELD_OUT = 2**16


@chz.chz
class Scenes(Source):
    """Random scenes of one to three things; the seed determines everything, nothing is downloaded.

    Raw fields: `image` uint8[64 64 3]; `text`; `speech` at 8 kHz and its `voice`; a label per thing `shape`, `colour`,
    `size`; `count` (minus one, as an index into COUNTS); `position` float32[S 2], the things' centres as shares of the
    image. The things are ordered by column from the left, within a column from the top. A sentence belongs to one
    split, and within validation and within test sentences are distinct, so retrieval there has no ties.
    """

    seed: int = chz.field(default=0, doc="seed of all data")
    train: int = chz.field(default=8192, doc="examples of the train split")
    validation: int = chz.field(default=256, doc="examples of the validation split")
    test: int = chz.field(default=256, doc="examples of the test split")
    speech: bool = chz.field(
        default=True, doc="whether to have speech, generated once: half a minute and 225 MB by default"
    )

    @chz.validate
    def _check(self) -> None:
        if self.seed < 0 or min(self.train, self.validation, self.test) < 1:
            raise UserError(f"scenes needs a seed of 0 or more and at least 1 example a split, and got {self}")
        if max(self.validation, self.test) > MOST_HELD_OUT:
            raise UserError(f"scenes has at most {MOST_HELD_OUT} examples of validation and of test, and got {self}")

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def open(self, data_dir: str, split: str) -> Records:
        spoken = building.StoredExamples(self.prepare(data_dir), split) if self.speech else None
        return SceneRecords(self, split, spoken)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        if manual_dir:
            raise UserError("scenes is generated and reads no files: leave out manual_dir")
        root = data_root(data_dir)
        if not self.speech:
            return root
        root = root / "scenes" / f"seed_{self.seed}_train_{self.train}_validation_{self.validation}_test_{self.test}"
        folder = root / "scenes_speech" / VERSION
        if not building.is_built(folder):
            from mmjax.data.sources.scenes_builder import ScenesSpeechBuilder

            silent = {split: SceneRecords(self, split) for split in SPLITS}
            utterances = {
                split: [rows.utterance(index) for index in range(len(rows))] for split, rows in silent.items()
            }
            building.build(ScenesSpeechBuilder(data_dir=root, utterances=utterances))
        return folder


class SceneRecords:
    """One split of scenes, with speech where `spoken` holds it."""

    def __init__(self, source: Scenes, split: str, spoken: building.StoredExamples | None = None):
        sizes = {"train": source.train, "validation": source.validation, "test": source.test}
        self._seed, self._split, self._size, self._spoken = source.seed, split, sizes[split], spoken
        self.fingerprint = (
            f"scenes/{VERSION}/{source.seed}/{split}/{self._size}/{spoken.fingerprint if spoken else 'silent'}"
        )
        self._held_out = None if split == "train" else self._distinct()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = self.scene(index)
        example = {
            "image": scene.draw(),
            "text": scene.sentence(),
            "shape": [thing.shape for thing in scene.things],
            "colour": [thing.colour for thing in scene.things],
            "size": [thing.size for thing in scene.things],
            "count": len(scene.things) - 1,
            "position": scene.positions(),
        }
        spoken = self._spoken[index] if self._spoken else {}
        if "speech" in spoken:
            example["speech"] = Recording(spoken["speech"], espeak.RATE)
            example["voice"] = self.utterance(index).voice
        return example

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"

    def scene(self, index: int) -> Scene:
        """The scene of example `index`."""
        if not 0 <= index < self._size:
            raise IndexError(f"{self._split} has {self._size} scenes, and no {index}")
        return self._held_out[index] if self._held_out else next(self._candidates(index))

    def utterance(self, index: int) -> espeak.Utterance:
        """The utterance of example `index`."""
        rng = np.random.default_rng((self._seed, SPLITS.index(self._split), index, 1))
        voice = espeak.VOICES[rng.integers(len(espeak.VOICES))]
        return espeak.Utterance(self.scene(index).sentence(), voice, int(rng.integers(35, 66)))

    def _candidates(self, index: int) -> Iterator[Scene]:
        """Endless scenes for one example, all with sentences that belong to the split."""
        rng = np.random.default_rng((self._seed, SPLITS.index(self._split), index, 0))
        while True:
            scene = drawing.draw_scene(rng)
            if _owner(scene.sentence()) == self._split:
                yield scene

    def _distinct(self) -> list[Scene]:
        scenes: dict[str, Scene] = {}
        for index in range(self._size):
            scene = next(scene for scene in self._candidates(index) if scene.sentence() not in scenes)
            scenes[scene.sentence()] = scene
        return list(scenes.values())


def _owner(sentence: str) -> str:
    """The split of a sentence: by its hash, so the same for all seeds and sizes."""
    chance = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=4).digest()) / 2**32
    for split, share in HELD_OUT.items():
        if chance < share:
            return split
        chance -= share
    return "train"
