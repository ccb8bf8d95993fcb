"""Scenes: pixels, labels and sentences agree, the splits share no sentence, and speech is the same each time."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmjax.data.sources import building, drawing, espeak, scenes_builder
from mmjax.data.sources.drawing import COLOURS, PLACES, SHAPES, SIZES
from mmjax.data.sources.scenes import Scenes
from mmjax.errors import UserError

THING = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
PURE = {"red": "f00", "green": "0a0", "blue": "00f", "yellow": "ff0", "purple": "808", "orange": "f80"}


@pytest.fixture(scope="module")
def examples() -> list[dict]:
    records = Scenes(speech=False).open("nowhere", "train")
    return [records[index] for index in range(300)]


def masks(picture: np.ndarray) -> list[np.ndarray]:
    """The things in a picture, as boolean masks, found by their distance from the background's colour."""
    away = np.abs(picture.astype(int) - picture[0, 0]).sum(-1)
    count, marks = cv2.connectedComponents((away > 60).astype(np.uint8), connectivity=8)
    return [marks == mark for mark in range(1, count)]


def covered(picture: np.ndarray, position: np.ndarray) -> float:
    """The area in pixels that differs from the background within a grid cell, a pixel's share being its difference."""
    x, y = (position * 64).astype(int)
    away = np.abs(picture - np.median(picture, (0, 1))).sum(-1)
    top, left = (int(edge) for edge in (position[::-1] * 3).astype(int) * 64 / 3)
    return float(away[top : top + 22, left : left + 22].sum() / away[y, x])


def outline(shape: str, angles: np.ndarray) -> np.ndarray:
    """How far a shape of unit radius reaches in each direction, from its definition: edges of regular polygons."""
    if shape == "circle":
        return np.ones_like(angles)
    sides = {"square": 4, "triangle": 3, "star": 5}[shape]
    away = np.abs((angles - (np.pi / 4 if shape == "square" else -np.pi / 2) + np.pi / sides) % (2 * np.pi / sides))
    away = np.abs(away - np.pi / sides)  # from the nearest corner
    outer, inner = {"square": (1.25, None), "triangle": (1.35, None), "star": (1.35, 0.6)}[shape]
    if inner is None:
        return outer * np.cos(np.pi / sides) / np.cos(np.pi / sides - away)
    # The line from the outer corner (angle 0) to the inner one (angle pi / 5), in polar coordinates.
    turn = np.pi / sides
    return outer * inner * np.sin(turn) / (inner * np.sin(turn - away) + outer * np.sin(away))


def seen_shape(picture: np.ndarray, position: np.ndarray) -> str:
    """The shape whose outline, at some size and turn, covers what differs from the background best."""
    x, y = (position * 64).astype(int)
    left, top = (int(edge) for edge in (position * 3).astype(int) * 64 / 3)
    away = np.abs(picture - np.median(picture, (0, 1))).sum(-1)
    patch = (away / away[y, x])[top : top + 22, left : left + 22]
    rows, columns = np.mgrid[0 : patch.shape[0] : 0.5, 0 : patch.shape[1] : 0.5] + 0.25
    across, down = columns + left - 64 * position[0], rows + top - 64 * position[1]
    distance, angle = np.hypot(across, down), np.arctan2(down, across)
    errors = {}
    for shape in SHAPES:
        for turn in np.radians((-9, -3, 3, 9)):
            reach = outline(shape, angle - turn)
            for radius in (3.7, 4.0, 4.3, 6.5, 6.8, 7.1, 7.4):
                inside = distance < radius * reach + 0.5  # OpenCV draws about half a pixel over an outline
                share = inside.reshape(patch.shape[0], 2, patch.shape[1], 2).mean((1, 3))
                errors[shape, turn, radius] = np.square(share - patch).sum()
    return min(errors, key=errors.get)[0]


def seen_colour(rgb: np.ndarray) -> str:
    """The nearest pure colour by hue."""

    def hue(rgb) -> float:
        return float(cv2.cvtColor(np.array([[rgb]], np.uint8), cv2.COLOR_RGB2HSV)[0, 0, 0]) * 2

    pure = {name: hue([int(digit, 16) * 17 for digit in digits]) for name, digits in PURE.items()}
    return min(pure, key=lambda name: abs((hue(rgb) - pure[name] + 180) % 360 - 180))


def test_labels_are_what_the_pixels_show(examples):
    right = {"shape": [], "colour": [], "size": []}
    for example in examples[:100]:
        assert example["image"].shape == (64, 64, 3)
        assert example["image"].dtype == np.uint8
        found = masks(example["image"])
        things = len(example["shape"])
        assert example["count"] == things - 1
        assert len(example["colour"]) == len(example["size"]) == len(example["position"]) == things
        if len(found) != things:  # neighbours that touch
            continue
        centres = np.array([np.argwhere(mask).mean(0)[::-1] + 0.5 for mask in found]) / 64
        for slot, position in enumerate(example["position"]):
            nearest = int(np.square(centres - position).sum(1).argmin())
            assert np.abs(centres[nearest] - position).max() < 0.02
            x, y = (position * 64).astype(int)
            right["shape"].append(seen_shape(example["image"], position) == SHAPES[example["shape"][slot]])
            right["colour"].append(seen_colour(example["image"][y, x]) == COLOURS[example["colour"][slot]])
            size = "large" if covered(example["image"], position) > 85 else "small"
            right["size"].append(size == SIZES[example["size"][slot]])
    assert len(right["shape"]) > 150
    assert np.mean(right["colour"]) == 1
    assert np.mean(right["size"]) == 1
    assert np.mean(right["shape"]) > 0.97


def test_things_are_ordered_and_lie_in_cells_of_their_own(examples):
    for example in examples:
        cells = [tuple(cell) for cell in (example["position"] * 3).astype(int)]
        assert cells == sorted(set(cells))


def test_sentences_say_what_the_labels_say(examples):
    for example in examples:
        cells = (example["position"] * 3).astype(int)
        kinds = zip(example["size"], example["colour"], example["shape"], strict=True)
        words = [(SIZES[size], COLOURS[colour], SHAPES[shape]) for size, colour, shape in kinds]
        if len(words) == 1:
            match = re.fullmatch(rf"{THING} at the (.+)", example["text"])
            assert match.groups() == (*words[0], PLACES[cells[0][1]][cells[0][0]])
        else:
            match = re.fullmatch(rf"{THING}(?: (left of|above) {THING})+", example["text"])
            assert match
            assert re.findall(THING, example["text"]) == words
            relations = re.findall("left of|above", example["text"])
            for relation, one, other in zip(relations, cells, cells[1:], strict=False):
                assert relation == ("left of" if other[0] > one[0] else "above")


def test_attributes_are_balanced(examples):
    for name, classes in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
        counts = np.bincount([label for example in examples for label in example[name]], minlength=len(classes))
        assert np.abs(counts / counts.sum() - 1 / len(classes)).max() < 0.06
    assert np.bincount([example["count"] for example in examples]).min() > 60


def test_no_sentence_is_in_two_splits_and_held_out_ones_differ():
    source = Scenes(train=2000, speech=False)
    texts = {}
    for split in source.splits:
        records = source.open("nowhere", split)
        texts[split] = [records[index]["text"] for index in range(len(records))]
    assert [len(texts[split]) for split in source.splits] == [2000, 256, 256]
    assert len(set(texts["validation"])) == len(set(texts["test"])) == 256
    sets = {split: set(sentences) for split, sentences in texts.items()}
    assert not sets["train"] & sets["validation"] | sets["train"] & sets["test"] | sets["validation"] & sets["test"]


def test_the_same_seed_is_the_same_scenes_and_another_is_not():
    first, again, other = (Scenes(seed=seed, speech=False).open("nowhere", "test") for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    for index in (0, 100, 255, 7):
        np.testing.assert_array_equal(first[index]["image"], again[index]["image"])
        assert first[index]["text"] == again[index]["text"]
    assert [first[index]["text"] for index in range(9)] != [other[index]["text"] for index in range(9)]
    # A longer split begins as the shorter one.
    longer = Scenes(seed=3, test=300, speech=False).open("nowhere", "test")
    assert [longer[index]["text"] for index in range(256)] == [first[index]["text"] for index in range(256)]
    assert first.id(12) == "test/12"
    with pytest.raises(IndexError):
        first[256]


def test_silence_writes_nothing(tmp_path):
    source = Scenes(speech=False)
    assert source.prepare(str(tmp_path)) == tmp_path
    assert "speech" not in source.open(str(tmp_path), "train")[0]
    assert not list(tmp_path.iterdir())


SMALL = {"train": 5, "validation": 2, "test": 2}


def test_speech_is_made_on_opening_and_the_same_each_time(tmp_path, monkeypatch, capsys):
    source = Scenes(**SMALL)
    monkeypatch.setattr(scenes_builder, "MEASURED", 3)
    before = source.open(str(tmp_path / "one"), "train")
    told = capsys.readouterr().err
    assert "making speech for 9 sentences before anything else; this is done once\n" in told
    assert re.search(r"at \d+ sentences a second, speech takes \d+ s more\n", told)
    assert len(before) == 5
    for index in range(5):
        recording = before[index]["speech"]
        assert (recording.rate, recording.samples.dtype) == (8000, np.int16)
        words = len(before[index]["text"].split())
        assert 0.13 < len(recording.samples) / 8000 / words < 0.35
        assert 500 < np.abs(recording.samples).max() < 32767
    again = source.open(str(tmp_path / "two"), "train")
    assert again.fingerprint == before.fingerprint
    for index in range(5):
        np.testing.assert_array_equal(again[index]["speech"].samples, before[index]["speech"].samples)
    monkeypatch.setattr(building, "build", lambda builder: pytest.fail("built again"))
    held_out = source.open(str(tmp_path / "one"), "validation")
    assert {*held_out[1]} == {*before[0]}


def test_processes_that_start_at_once_share_one_cache(tmp_path):
    words = [f"{name}={size}" for name, size in SMALL.items()]
    command = [sys.executable, "-m", "launch.prepare", "scenes", f"data_dir={tmp_path}", *words]
    checkout = Path(__file__).parents[2]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=checkout)
        for _ in range(3)
    ]
    answers = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], answers
    assert sum("building scenes_speech" in errors for _, errors in answers) == 1
    assert len({out for out, _ in answers}) == 1
    assert len(list(tmp_path.rglob("dataset_info.json"))) == 1
    assert "speech" in Scenes(**SMALL).open(str(tmp_path), "test")[1]


def test_resampling_a_tone():
    times = np.arange(22050) / 22050
    tone = 10_000 * np.sin(2 * np.pi * 440 * times) + 5_000 * np.sin(2 * np.pi * 6000 * times)
    made = espeak.resample(tone.astype(np.int16), 22050)
    expected = 10_000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)  # 6 kHz cannot exist at 8 kHz, and is gone
    assert len(made) == 8000
    assert np.abs(made - expected)[200:-200].max() < 30


def test_a_voice_that_is_not_there_is_one_clear_line():
    from mmjax.data.sources.scenes_builder import speak

    with pytest.raises(UserError, match=r"espeak-ng cannot say .*nobody.*speech=false"):
        speak([espeak.Utterance("a small red circle", "nobody", 50)], lambda: None)


def test_fields_are_checked():
    for wrong in ({"seed": -1}, {"train": 0}):
        with pytest.raises(UserError, match="scenes needs a seed of 0 or more"):
            Scenes(**wrong)
    with pytest.raises(UserError, match="leave out manual_dir"):
        Scenes().prepare("nowhere", "somewhere")


AREAS = {"circle": np.pi, "square": 2 * 1.25**2, "triangle": 0.75 * 3**0.5 * 1.35**2}
AREAS["star"] = 5 * np.sin(np.pi / 5) * 1.35 * 0.6


def test_things_are_drawn_whole():
    """Areas by geometry: a thing that stuck out of the picture, or were drawn too small, would lack some."""
    rng = np.random.default_rng(0)
    scenes = [drawing.draw_scene(rng) for _ in range(400)]
    for scene in scenes:
        if len(scene.things) == 1:
            (thing,) = scene.things
            expected = AREAS[SHAPES[thing.shape]] * thing.radius**2
            assert 0.98 < covered(scene.draw(), scene.positions()[0]) / expected < 1.9
