"""Numbers strung from single digits: what is in them, that all follows from the seed, and what could not be read."""

import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.sources.base import Recording
from mmjax.data.sources.digit_strings import MOST_DIGITS, RATE, WORDS, DigitStringRecords, DigitStrings
from mmjax.errors import UserError


class Singles:
    """Digits whose picture is as bright as they are high and whose recording holds them as samples."""

    fingerprint = "singles"

    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 30

    def __getitem__(self, index):
        digit = index % 10
        samples = np.full(100 + digit, 1000 * (digit + 1), np.int16)
        image = np.full((28, 28, 1), 20 * (digit + 1), np.uint8)
        example = {"image": image, "speech": Recording(samples, RATE), "label": digit}
        return {name: value for name, value in example.items() if (index, name) not in self.broken}

    def id(self, index):
        return f"train/{index}"


def test_pictures_sound_and_words_are_of_the_same_digits():
    records = DigitStringRecords(DigitStrings(), "train", Singles())
    counts, digits = np.zeros(MOST_DIGITS + 1, int), np.zeros(10, int)
    for example in (records[index] for index in range(400)):
        said = example["digits"]
        counts[len(said)] += 1
        digits += np.bincount(said, minlength=10)
        assert example["text"].split() == [WORDS[digit] for digit in said]
        columns = example["image"][0, ::28, 0]
        assert columns.tolist() == [20 * (digit + 1) for digit in said] + [0] * (MOST_DIGITS - len(said))
        samples = example["speech"].samples
        loud = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]])))
        assert (loud[1::2] - loud[::2]).tolist() == [100 + digit for digit in said]
        silences = loud[2::2] - loud[1:-1:2]
        assert ((silences >= 0.05 * RATE - 1) & (silences <= 0.15 * RATE + 1)).all()
        assert np.abs(samples).max() == pytest.approx(0.5)
    assert counts[0] == 0
    assert counts[1:].min() > 60
    assert digits.min() > 50


def test_everything_follows_from_the_seed_and_splits_differ():
    def texts(split, **settings):
        records = DigitStringRecords(DigitStrings(**settings), split, Singles())
        return [records[index]["text"] for index in range(20)]

    assert texts("train") == texts("train")
    assert texts("train") != texts("test")
    assert texts("train") != texts("train", seed=1)


def test_what_cannot_be_read_is_left_out():
    broken = {(index, "image") for index in range(15)}
    records = DigitStringRecords(DigitStrings(), "train", Singles(broken))
    examples = [records[index] for index in range(100)]
    assert {"image" in example for example in examples} == {True, False}
    assert all("speech" in example and "text" in example for example in examples)
    assert not DigitStringRecords(DigitStrings(), "train", Singles({(i, "label") for i in range(30)}))[0]


def test_inputs_read_them():
    example = DigitStringRecords(DigitStrings(), "test", Singles())[3]
    picture, _ = ImageInput(size=28, width=112, channels=1).read(example["image"], None)
    assert picture.shape == (28, 112, 1)
    assert np.isfinite(SpectrogramInput(seconds=3.0).read(example["speech"], None)[0]).all()
    assert TextInput(length=24).read(example["text"], None)[1].any()


def test_wrong_requests():
    with pytest.raises(UserError, match="at least 1 example a split"):
        DigitStrings(train=0)
    with pytest.raises(IndexError, match="has 2048 numbers, and no 2048"):
        DigitStringRecords(DigitStrings(), "test", Singles())[2048]
    with pytest.raises(UserError, match=r"launch\.prepare av_digits"):
        DigitStrings().open("nowhere", "train")
