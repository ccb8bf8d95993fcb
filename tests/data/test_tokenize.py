"""Tokenizers: round trips, the meaning of ids, and that what a run learned stays what it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.data.inputs import TextInput
from mmjax.data.tokenize import END, PADDING, Bpe, Bytes, Corpus, Tokenizer, train_bpe
from mmjax.errors import UserError

TEXTS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "big")
    for colour in ("red", "blue")
    for shape in ("circle", "square")
]
STRANGE = ["", "é\U0001f600 日本語", "<pad> and <end>", "tab\tnewline\n", "\x00\x7f", "unseen words", "  two  spaces "]


class Texts:
    """Records with a text; one is empty, one missing."""

    def __init__(self, texts, fingerprint="texts"):
        self.rows = [{"caption": text} for text in texts] + [{"caption": " "}, {}]
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def id(self, index):
        return f"train/{index}"


def corpus(folder: Path, texts=TEXTS, fingerprint="texts") -> Corpus:
    return Corpus(lambda: Texts(texts, fingerprint), "caption", folder)


@pytest.fixture
def bpe(tmp_path) -> Tokenizer:
    return Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path), None)


@pytest.mark.parametrize("text", TEXTS[:2] + STRANGE)
def test_round_trips(bpe, text):
    for tokenizer in (Bytes(), bpe):
        ids = tokenizer.encode(text)
        assert ids[-1] == END
        assert not {PADDING, END} & set(ids[:-1])
        assert max(ids) < tokenizer.size
        assert tokenizer.decode([*ids, PADDING, PADDING]) == text
        assert tokenizer.decode(ids[:-1]) == text


def test_a_cut_character_is_left_out(bpe):
    for tokenizer in (Bytes(), bpe):
        assert tokenizer.decode(tokenizer.encode("ab€")[:4]) == "ab"


def test_bpe_learns_the_words_of_its_corpus(bpe):
    assert len(bpe.encode("a big red circle")) == 5  # four words and the end
    assert len(bpe.encode("a big red circle")) < len(Bytes().encode("a big red circle")) / 3


def test_the_feature_is_known_before_training():
    assert TextInput(length=4, tokenizer=Bpe(vocabulary=500)).feature.vocabulary == 500
    assert TextInput(length=4).feature.vocabulary == Bytes().size == 258


def test_training_is_deterministic_across_processes():
    """Another process, with other hash seeds and another number of threads, learns the very same."""
    code = (
        "import sys, json; from mmjax.data.tokenize import train_bpe; "
        "sys.stdout.write(train_bpe(json.loads(sys.argv[1]), 270))"
    )
    expected = train_bpe(TEXTS, 270)
    assert len(json.loads(expected)["model"]["vocab"]) == 270
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "123", "RAYON_NUM_THREADS": "3", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TEXTS)], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == expected


def test_trained_once_for_a_corpus(tmp_path):
    first = Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path), None)
    made = Path(first.file).stat().st_mtime_ns
    assert Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path), None) == first
    assert Path(first.file).stat().st_mtime_ns == made
    others = [
        Bpe(vocabulary=301).fit_tokenizers(corpus(tmp_path), None),
        Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path, fingerprint="other"), None),
    ]
    assert len({first.file, *(other.file for other in others)}) == 3
    assert len(list(tmp_path.iterdir())) == 3  # and nothing half-written beside them


def test_what_is_stored_comes_first(tmp_path):
    first = Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path), None)
    other = corpus(tmp_path, ["entirely other words"] * 3, "other")
    assert first.tokenizer_file is not None
    assert Bpe(vocabulary=300).fit_tokenizers(other, first.tokenizer_file) == first
    assert Bpe(vocabulary=300).fit_tokenizers(other, tmp_path / "none").encode(TEXTS[0]) != first.encode(TEXTS[0])


def test_bytes_need_no_corpus(tmp_path):
    def refuse():
        raise AssertionError("nothing is to be read")

    assert Bytes().fit_tokenizers(Corpus(refuse, "caption", tmp_path), None).tokenizer_file is None
    assert not list(tmp_path.iterdir())


def test_an_unbound_bpe_says_so():
    with pytest.raises(ValueError, match="not trained"):
        Bpe().encode("text")


def test_files_that_are_no_tokenizer(tmp_path):
    broken, foreign = tmp_path / "broken.json", tmp_path / "foreign.json"
    broken.write_text("{")
    foreign.write_text(train_bpe(TEXTS, 300).replace("<pad>", "[PAD]"))
    large = tmp_path / "large.json"
    large.write_text(train_bpe(TEXTS, 270))
    cases = {
        "is not a tokenizer": (broken, 300),
        "as id 0": (foreign, 300),
        "more than": (large, 269),
        "there is no": (tmp_path / "none", 300),
    }
    for reason, (file, vocabulary) in cases.items():
        with pytest.raises(UserError, match=reason):
            Bpe(vocabulary=vocabulary, file=str(file)).fit_tokenizers(corpus(tmp_path), None)
    with pytest.raises(ValueError, match="258"):
        Bpe(vocabulary=100)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        Bpe(vocabulary=300).fit_tokenizers(corpus(tmp_path / "file"), None)
