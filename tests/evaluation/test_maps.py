"""Maps over pictures, spectrograms and words, by hand."""

import numpy as np
import pytest

from mmjax.data.inputs import TextInput
from mmjax.evaluation.maps import AGAINST, FOR, draw_map, draw_words, words_of
from mmjax.types import Image, Spectrogram, Text

SENTENCE = TextInput(length=20)


def test_what_speaks_for_and_against_is_coloured():
    grey = np.linspace(0, 1, 16).reshape(4, 4)
    says = np.zeros((4, 4))
    says[0, 0], says[3, 3], says[1, 1] = 2, -2, 1
    drawn = draw_map(grey, says)
    np.testing.assert_allclose(drawn[0, 0], FOR)
    np.testing.assert_allclose(drawn[3, 3], AGAINST)
    np.testing.assert_allclose(drawn[1, 1], (FOR + 0.4 + 0.6 * grey[1, 1]) / 2, atol=0.02)
    np.testing.assert_allclose(drawn[0, 3], 0.4 + 0.6 * grey[0, 3])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    np.testing.assert_allclose(draw_map(grey, 0 * says).std(-1), 0, atol=1e-9)
    assert np.isfinite(draw_map(0 * grey, says)).all()


def test_tokens_stand_for_patches_and_frames():
    patches = Image(8, 12, 3).spread_tokens(np.arange(6.0))
    np.testing.assert_array_equal(patches[::4, ::4], [[0, 1, 2], [3, 4, 5]])
    assert patches.shape == (8, 12)
    assert (patches[:4, 4:8] == 1).all()
    frames = Spectrogram(10, 2, 0.01).spread_tokens(np.arange(3.0))
    np.testing.assert_array_equal(frames, np.tile([[0], [0], [0], [0], [1], [1], [1], [1], [2], [2]], 2))
    assert Text(5, 9).spread_tokens(np.arange(5.0)).shape == (5,)


def test_tokens_belong_to_words():
    ids, mask = SENTENCE.read("a red dot", None)
    words, places = words_of(SENTENCE, ids)
    assert words == ["a", "red", "dot"]
    text = "a red dot"
    np.testing.assert_array_equal(places[: len(text)], [0, 0, 1, 1, 1, 1, 2, 2, 2])
    assert (places[len(text) :] == 2).all()
    assert mask.sum() == len(text) + 1


def test_words_are_as_strong_as_their_tokens():
    ids, _ = SENTENCE.read("a red", None)
    says = np.zeros(20)
    says[[0, 2, 3, 4]] = 1, -1, -1, -2
    assert draw_words(SENTENCE, ids, says, shared=False) == [("a", 0.25), ("red", -1)]
    shared = np.where(np.arange(20) < 2, 3.0, 1.5)
    assert draw_words(SENTENCE, ids, shared, shared=True) == [("a", 1), ("red", 0.5)]
    assert draw_words(SENTENCE, 0 * ids, says, shared=False) == []
    assert [weight for _, weight in draw_words(SENTENCE, ids, 0 * says, shared=True)] == pytest.approx([0, 0])
