"""A small run that reads every kind of input and models only the picture, which compiles sooner."""

import numpy as np

from launch import command_line
from launch.train import train
from mmjax.data.sources.base import Recording
from mmjax.data.sources.scenes import SceneRecords
from tests.system.conftest import TINY

STEPS = 6  # of 16: one epoch of 96
KEYS = dict(
    word.split("=") for word in TINY if not word.startswith(("data.inputs", "model.encoders.text", "model.outputs"))
)
KEYS |= {
    f"model.outputs.{name}": "None" for name in ("colour", "size", "count", "position", "image_text", "speech_text")
}
KEYS |= {"model.encoders.text": "None", "model.fusion": "Concat", "model.encoders.image.heads": "4", "mesh.data": "1"}
KEYS |= {"train.steps": f"{STEPS}", "train.evaluate_every": "4", "checkpoint.every": "2", "data.max_bad_share": "0.5"}


def settings(*words: object) -> list[str]:
    """The key=value words of a small run, those given taking over."""
    return [f"{key}={value}" for key, value in (KEYS | dict(str(word).split("=") for word in words)).items()]


def sound() -> np.ndarray:
    return np.sin(np.arange(4000, dtype=np.float32) / 5)


def replace(monkeypatch, fields):
    """Gives every scene a sound and some examples another field: {(split, index): (field, value, ...)}."""
    read = SceneRecords.__getitem__

    def changed(self, index):
        example = read(self, index) | {"speech": Recording(sound(), 8000)}
        found = fields.get((self._split, index))
        return example if found is None else example | {found[0]: found[1]}

    monkeypatch.setattr(SceneRecords, "__getitem__", changed)


def go(run_dir, *words) -> int:
    return command_line.main(train, "", ["scenes", *settings(*words, f"run_dir={run_dir}")])
