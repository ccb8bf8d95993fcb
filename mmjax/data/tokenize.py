"""Text to token ids and back: bytes, or byte pairs learned from the training texts."""

import abc
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import chz

from mmjax.data.clean import BadInput, clean_text, read_example
from mmjax.data.sources.base import Records
from mmjax.errors import UserError
from mmjax.files import explained, local_path, write_atomic
from mmjax.types import END, PADDING

SPECIAL = ("<pad>", "<end>")  # their places are their ids
CORPUS_EXAMPLES = 20_000  # a tokenizer learns from this many examples, evenly spread


class Corpus:
    """The training texts of one field, and a folder that keeps what was learned from them."""

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
                yield clean_text(read_example(self.records, index).get(self.field))
            except BadInput:
                continue  # counted and named when the loader reads it


@chz.chz
class Tokenizer(abc.ABC):
    """Text to ids below `size` and back. Id 0 is padding and 1 ends every text; neither stands for any text."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many ids there are, padding and end included."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a whole text, without padding, the end included."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end; padding is skipped, and so is a part of a character at the end."""

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "Tokenizer":
        """This tokenizer ready for use: as `stored` by a run, where such a file is, else learned from the corpus."""
        return self

    @property
    def learned(self) -> Path | None:
        """The file of what `fit_tokenizers` learned; None where there is nothing to learn."""
        return None


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
    """Byte-level byte-pair encoding (Sennrich et al. 2016; over bytes, Radford et al. 2019), so no text is unknown."""

    vocabulary: int = chz.field(
        default=1024, doc="how many ids there are at most; a small corpus may give fewer, and the rest is not used"
    )
    file: str | None = chz.field(
        default=None,
        doc="a trained one in the JSON of the library `tokenizers`; None trains one on the training texts",
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
            raise ValueError("this Bpe is not trained: use what Data.bind returns")
        return _load(self.file, os.stat(self.file).st_mtime_ns, self.vocabulary)

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> Tokenizer:
        if stored is not None and stored.is_file():
            file = stored
        elif self.file is not None:
            file = local_path(self.file)
        else:
            file = self._trained(corpus)
        if not file.is_file():
            raise UserError(f"there is no tokenizer {file}")
        bound = chz.replace(self, file=str(file))
        bound.encode("")  # a file that cannot be used is reported now
        return bound

    @property
    def learned(self) -> Path | None:
        return None if self.file is None else Path(self.file)

    def _trained(self, corpus: Corpus) -> Path:
        """The file of the tokenizer learned from this corpus, which is made unless it is there."""
        import tokenizers

        key = f"{corpus.fingerprint}/{self.vocabulary}/{tokenizers.__version__}"
        file = corpus.folder / f"bpe-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.is_file():
            store(file, train_bpe(corpus, self.vocabulary))
        return file


def train_bpe(texts: Iterable[str], vocabulary: int) -> str:
    """The JSON of a tokenizer with at most `vocabulary` ids; the same texts in the same order give the same."""
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
    """The tokenizer of a file, read once as long as it does not change."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{file} is no tokenizer: {error}") from error
    if [tokenizer.token_to_id(token) for token in SPECIAL] != [PADDING, END]:
        raise UserError(f"the tokenizer {file} must have {SPECIAL[0]} as id {PADDING} and {SPECIAL[1]} as id {END}")
    if tokenizer.get_vocab_size() > vocabulary:
        raise UserError(f"the tokenizer {file} has {tokenizer.get_vocab_size()} ids, more than vocabulary={vocabulary}")
    tokenizer.encode_special_tokens = True  # "<pad>" in a text is five characters
    return tokenizer


def _body(ids: Sequence[int]) -> list[int]:
    """The ids that stand for text."""
    ids = [int(id) for id in ids]
    end = ids.index(END) if END in ids else len(ids)
    return [id for id in ids[:end] if id != PADDING]


def store(path: Path, text: str) -> None:
    """Writes a tokenizer's file whole or not at all, and its folder where there is none."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
