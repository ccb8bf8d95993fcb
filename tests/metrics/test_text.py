"""Scores of what was made, against figures worked out by hand."""

import itertools
import math

import jiwer
import numpy as np
import pytest
import sacrebleu

from mmjax.metrics.statistics import intervals
from mmjax.metrics.text import cider, text_metrics, text_statistics

TRUTH = ["a red circle above a blue star", "a small green square", "two stars", "a large red circle"]


def test_the_truth_itself_scores_highest():
    found = text_metrics(TRUTH, TRUTH)
    assert found["bleu"] == pytest.approx(100)
    assert (found["exact"], found["word_error"], found["character_error"]) == (1, 0, 0)
    # "two stars" has no three words and no four: 2 of its 4 orders count.
    assert found["cider"] == pytest.approx(10 * (3 * 4 + 2) / 16)


def test_errors_are_counted_by_words_and_characters():
    said = ["a red circle above a blue star", "a small green circle", "two", ""]
    found = text_metrics(said, TRUTH)
    assert found["exact"] == 0.25
    assert found["word_error"] == pytest.approx((0 + 1 + 1 + 4) / 17)
    # circle for square: i for q, r for u, c for a, l for r, and the first letter, c for s.
    assert found["character_error"] == pytest.approx((0 + 5 + 6 + 18) / sum(map(len, TRUTH)))


def test_cider_by_hand():
    """Of "a b" and "c": "a" is said where "a b" is true, and "c c" where "c" is."""
    # One word: [a] against [a b], all weights log 2: cos = 1 / sqrt 2; [c c] against [c]: 1. Two words: none in common.
    assert cider(["a", "c c"], ["a b", "c"]) == pytest.approx([10 / math.sqrt(2) / 4, 10 / 4])


def test_cider_weighs_a_rare_word_more():
    """ "a" stands in two of three true texts, "b", "c" and "d" in one each: weights of log 3/2 and log 3."""
    common, rare = math.log(3 / 2), math.log(3)
    both = common**2 + rare**2
    found = cider(["a c", "a", "d a"], ["a b", "a c", "d d"])
    # One word: [a c] against [a b], [a] against [a c], [d a] against [d d]. Two words: none in common.
    expected = [common**2 / both, common / math.sqrt(both), rare / math.sqrt(both)]
    assert found == pytest.approx([10 * value / 4 for value in expected])


def test_figures_of_a_corpus_are_those_of_sacrebleu_and_jiwer():
    rng = np.random.default_rng(0)
    words = ["a", "the", "red", "blue", "circle", "square", "of", "left", "above", "large"]
    truth = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(60)]
    said = [" ".join(word if rng.random() < 0.7 else rng.choice(words) for word in text.split()) for text in truth]
    said[3] = ""
    found = text_statistics(said, truth)
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(said, [truth]).score, abs=1e-9)
    assert found["word_error"].value == pytest.approx(jiwer.wer(truth, said), abs=1e-9)
    assert found["character_error"].value == pytest.approx(jiwer.cer(truth, said), abs=1e-9)
    some = rng.random(60) < 0.5
    picked = [list(itertools.compress(texts, some)) for texts in (said, truth)]
    slice_score = sacrebleu.corpus_bleu(picked[0], [picked[1]]).score
    assert found["bleu"].subset(some).value == pytest.approx(slice_score, abs=1e-9)
    interval = intervals(found)["bleu"]
    assert interval.low < interval.value < interval.high
