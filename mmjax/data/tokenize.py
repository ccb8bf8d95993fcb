"""Tokenizers: bytes, or byte pairs learned from the training texts."""

import abc
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import chz

from mmjax.data.clean import BadInput, decode_text, read_example
from mmjax.data.sources.base import Records
from mmjax.errors import UserError
from mmjax.files import explained, local_path, write_atomic
from mmjax.types import END, PADDING

SPECIAL = ("<pad>", "<end>")  # their places are their ids
CORPUS_EXAMPLES = 20_000  # a tokenizer learns from this many examples, evenly spread


class Corpus:
    """The training texts of one field, and a cache folder for the tokenizer learned from them."""

    def __init__(self, open_records: Callable[[], Records], field: str, folder: Path):
        self._open, self.field, self.folder = open_records, field, folder

    @functools.cached_property
    def records(self) -> Records:
        return self._open()

    @property
    def fingerprint(self) -> str:
        return f"{self.records.fingerprint}/{self.field}/{CORPUS_EXAMPLES}"

    def __iter__(self) -> Iterator[str]:
        """Every usable text of `CORPUS_EXAMPLES` examples, in order."""
        for index in range(0, len(self.records), max(1, -(-len(self.records) // CORPUS_EXAMPLES))):
            try:
                yield decode_text(read_example(self.records, index).get(self.field))
            except BadInput:
                continue  # counted and named when the loader reads it

    def file(self, kind: str, key: str) -> Path:
        """Where what is learned from the corpus is kept: a file by its kind and all that it depends on."""
        return self.folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def values(self) -> Iterator[Any]:
        """The field's raw value of every example, in order; None where it cannot be read."""
        return column(self.records, self.field)


def column(records: Records, field: str) -> Iterator[Any]:
    """The field's raw value of every example, in order; None where it cannot be had."""
    of = getattr(records, "column", None)  # of records that read a column without the rest
    return (field_value(records, index, field) for index in range(len(records))) if of is None else of(field)


def field_value(records: Records, index: int, field: str) -> Any:
    """The field's raw value of an example; None where it is missing or the example cannot be read."""
    try:
        return read_example(records, index).get(field)
    except BadInput:
        return None


@chz.chz
class Tokenizer(abc.ABC):
    """Text to ids below `size` and back. Id 0 is padding and id 1 ends every text."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of ids, padding and end included."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a whole text, without padding, the end included."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end; padding and an incomplete last character are skipped."""

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "Tokenizer":
        """This tokenizer ready for use: loaded from the file `stored` if it exists, else trained."""
        return self

    @property
    def tokenizer_file(self) -> Path | None:
        """The file written by `fit_tokenizers`; None where there is nothing to fit."""
        return None

    @property
    def moved_ids(self) -> dict[int, int]:
        """Ids that are others than in the tokenizer's file: by the id there, the id here."""
        return {}


@chz.chz
class Bytes(Tokenizer):
    """One token per UTF-8 byte."""

    @property
    def size(self) -> int:
        return len(SPECIAL) + 256

    def encode(self, text: str) -> list[int]:
        return [byte + len(SPECIAL) for byte in text.encode()] + [END]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(id - len(SPECIAL) for id in _body(ids)).decode(errors="ignore")


@chz.chz
class Bpe(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019): no unknown text."""

    vocabulary: int = chz.field(default=1024, doc="largest number of ids; a small corpus may give fewer")
    file: str | None = chz.field(
        default=None,
        doc="JSON file of a trained tokenizer (library `tokenizers`); None: train one on the training texts",
    )

    @chz.validate
    def _holds_bytes(self) -> None:
        if self.vocabulary < len(SPECIAL) + 256:
            raise ValueError(f"vocabulary must hold padding, end and all bytes: {len(SPECIAL) + 256} or more")

    @property
    def size(self) -> int:
        return self.vocabulary

    def encode(self, text: str) -> list[int]:
        return [*self._model.encode(text).ids, END]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(_body(ids)).rstrip("\ufffd")

    @property
    def _model(self):
        if self.file is None:
            raise ValueError("this Bpe is not trained: use the result of Data.fit_tokenizers")
        return _load(self.file, os.stat(self.file).st_mtime_ns, self.vocabulary)

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> Tokenizer:
        if stored is not None and stored.is_file():
            file = stored
        elif self.file is not None:
            file = local_path(self.file)
        else:
            file = self._trained(corpus)
        if not file.is_file():
            raise UserError(f"there is not a tokenizer {file}")
        bound = chz.replace(self, file=str(file))
        bound.encode("")  # a file that cannot be used is reported now
        return bound

    @property
    def tokenizer_file(self) -> Path | None:
        return None if self.file is None else Path(self.file)

    def _trained(self, corpus: Corpus) -> Path:
        """The file of the tokenizer trained on this corpus, trained now unless it exists."""
        import tokenizers

        file = corpus.file("bpe", f"{corpus.fingerprint}/{self.vocabulary}/{tokenizers.__version__}")
        if not file.is_file():
            write_tokenizer(file, train_bpe(corpus, self.vocabulary))
        return file


def train_bpe(texts: Iterable[str], vocabulary: int) -> str:
    """The JSON of a tokenizer with at most `vocabulary` ids, trained on the texts.

    The same texts in the same order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


@functools.lru_cache
def _load(file: str, modified: int, vocabulary: int):
    """The tokenizer of a file, cached until the file changes."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{file} is not a tokenizer: {error}") from error
    if [tokenizer.token_to_id(token) for token in SPECIAL] != [PADDING, END]:
        raise UserError(f"the tokenizer {file} must have {SPECIAL[0]} as id {PADDING} and {SPECIAL[1]} as id {END}")
    if tokenizer.get_vocab_size() > vocabulary:
        raise UserError(f"the tokenizer {file} has {tokenizer.get_vocab_size()} ids, more than vocabulary={vocabulary}")
    tokenizer.encode_special_tokens = True  # "<pad>" in a text is five characters
    return tokenizer


def _body(ids: Sequence[int]) -> list[int]:
    """The ids without padding and end."""
    ids = [int(id) for id in ids]
    end = ids.index(END) if END in ids else len(ids)
    return [id for id in ids[:end] if id != PADDING]


def write_tokenizer(path: Path, text: str) -> None:
    """Writes a tokenizer's file atomically, and its folder where it does not exist."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
