"""Made-up modalities of which it is known what they tell."""

import dataclasses
import itertools

import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.sources.interactions import BEAT, CELL, HERTZ, RATE, SECONDS, SIDE, WORDS, Interactions
from mmjax.errors import UserError
from mmjax.metrics.information import decompose_information

MIXED = {"unique_a": 1, "unique_b": 1, "redundant": 1, "synergy": 1}


def bits_of(value, count):
    return [value >> place & 1 for place in reversed(range(count))]


def test_the_label_follows_from_the_bits():
    records = Interactions(**MIXED).open("", "train")
    seen = set()
    for example in (records[index] for index in range(200)):
        (unique_a, redundant_a, s_a), (unique_b, redundant_b, s_b) = example["a_bits"], example["b_bits"]
        assert redundant_a == redundant_b
        assert bits_of(example["label"], 4) == [unique_a, unique_b, redundant_a, s_a ^ s_b]
        seen.add((*example["a_bits"], *example["b_bits"]))
    assert len(seen) == 32


def test_noise_flips_bits_of_the_label():
    source = Interactions(**MIXED, noise=0.25)
    records, flips = source.open("", "train"), []
    for example in (records[index] for index in range(500)):
        (unique_a, redundant, s_a), (unique_b, _, s_b) = example["a_bits"], example["b_bits"]
        flips += np.not_equal(bits_of(example["label"], 4), [unique_a, unique_b, redundant, s_a ^ s_b]).tolist()
    assert np.mean(flips) == pytest.approx(0.25, abs=0.03)
    assert source.best_accuracy == pytest.approx(0.75**4)


def test_everything_follows_from_the_seed_and_splits_differ():
    source = Interactions()
    first, again = source.open("", "train"), source.open("", "train")
    assert [first[index]["a"] for index in range(20)] == [again[index]["a"] for index in range(20)]
    np.testing.assert_array_equal(first[3]["b"], again[3]["b"])
    for other in (source.open("", "test"), Interactions(seed=1).open("", "train")):
        assert [first[index]["a"] for index in range(20)] != [other[index]["a"] for index in range(20)]
    assert [first.id(0), len(first)] == ["train/0", 16384]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_the_information_is_that_of_the_enumerated_table(noise):
    joint = np.zeros((16, 8, 8))
    for unique_a, unique_b, redundant, s_a, s_b in itertools.product((0, 1), repeat=5):
        truth = (unique_a, unique_b, redundant, s_a ^ s_b)
        a, b = 4 * unique_a + 2 * redundant + s_a, 4 * unique_b + 2 * redundant + s_b
        for flips in itertools.product((0, 1), repeat=4):
            label = int("".join(str(bit ^ flip) for bit, flip in zip(truth, flips, strict=True)), 2)
            joint[label, a, b] += noise ** sum(flips) * (1 - noise) ** (4 - sum(flips)) / 32
    told, found = Interactions(**MIXED, noise=noise).information, decompose_information(joint)
    for part, bits in dataclasses.asdict(told).items():
        assert bits == pytest.approx(getattr(found, part), abs=1e-3), part
    assert told.total == pytest.approx(found.total, abs=1e-3)


@pytest.mark.parametrize(
    ("form", "reader"),
    [
        ("tokens", TextInput(length=8)),
        ("picture", ImageInput(size=SIDE, channels=1)),
        ("sound", SpectrogramInput(seconds=SECONDS)),
    ],
)
@pytest.mark.parametrize("counts", [{"synergy": 4}, {"synergy": 0, "unique_b": 1}])
def test_forms_can_be_read(form, reader, counts):
    """Also by a modality that carries nothing."""
    records = Interactions(a=form, **counts).open("", "validation")
    for index in range(5):
        values, _ = reader.read(records[index]["a"], None)
        assert np.isfinite(values).all()


def letters_of(text):
    told = {letter: bit for word in WORDS for bit, letters in enumerate(word) for letter in letters}
    return [told[letter] for letter in text if letter in told]


def bars_of(picture):
    """A standing bar fills columns, whose sums then differ more than those of rows."""
    cells = [picture[top : top + CELL, left : left + CELL, 0] for top in (0, CELL) for left in (0, CELL)]
    return [int(cell.sum(0).std() > cell.sum(1).std()) for cell in cells]


def tones_of(sound):
    """Of a slot's two frequencies the stronger one in the spectrum of its turn."""
    times, found = np.arange(BEAT) / RATE, []
    for slot, pair in enumerate(HERTZ):
        turn = sound.samples[slot * BEAT : (slot + 1) * BEAT]
        found.append(int(np.argmax([abs(np.exp(-2j * np.pi * hertz * times) @ turn) for hertz in pair])))
    return found


@pytest.mark.parametrize(("form", "read"), [("tokens", letters_of), ("picture", bars_of), ("sound", tones_of)])
def test_forms_tell_their_bits_without_error(form, read):
    records = Interactions(a=form, b=form).open("", "test")
    for example in (records[index] for index in range(300)):
        assert read(example["a"]) == example["a_bits"]
        assert read(example["b"]) == example["b_bits"]


@pytest.mark.parametrize("wrong", [{"synergy": 0}, {"synergy": 5}, {"noise": 0.6}, {"unique_a": -1}, {"train": 0}])
def test_what_cannot_be_is_one_clear_error(wrong):
    with pytest.raises(UserError, match="interactions needs"):
        Interactions(**wrong)
