"""Tokenizers of other projects, whose ids are reordered so that 0 is padding and 1 the end."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import chz

from mmjax.data.tokenize import Corpus, Tokenizer
from mmjax.errors import UserError
from mmjax.files import local_path
from mmjax.types import END, PADDING


@chz.chz
class PretrainedTokenizer(Tokenizer):
    """A tokenizer.json of the library `tokenizers`, as Hugging Face's models have it.

    Its padding and end get the ids 0 and 1, and the tokens that had these get theirs. Where padding is not a token of
    its own, it gets an id after all others and then that of `padding` is its row in a table.
    """

    file: str = chz.field(doc="the tokenizer.json")
    vocabulary: int = chz.field(doc="how many ids the model has, which may be more than the tokenizer")
    end: str = chz.field(doc="the token that ends a text")
    padding: str | None = chz.field(default=None, doc="the token of padding; None: the end's")
    copy_padding: bool = chz.field(
        default=False, doc="padding is a copy of that token, such as the start of a text that a decoder writes"
    )

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def order(self) -> tuple[int, ...]:
        """By id here, the id there; padding may be a copy, so that two have the same."""
        return _order(*self._key, self.vocabulary, self.end, self.padding, self.copy_padding)

    @property
    def moved_ids(self) -> dict[int, int]:
        return {there: here for there, here in _places(self.order).items() if there != here}

    def encode(self, text: str) -> list[int]:
        there = _places(self.order)
        # A text that a decoder writes begins after the start, and its end is added here.
        ids = [there[id] for id in _load(*self._key).encode(text, add_special_tokens=not self.copy_padding).ids]
        return ids if ids and ids[-1] == END else [*ids, END]

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(id) for id in ids]
        body = ids[: ids.index(END)] if END in ids else ids
        order = self.order
        return _load(*self._key).decode([order[id] for id in body if id != PADDING], skip_special_tokens=True)

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "PretrainedTokenizer":
        file = stored if stored is not None and stored.is_file() else local_path(self.file)
        bound = chz.replace(self, file=str(file))
        bound.encode("")  # a file that cannot be used is reported now
        return bound

    @property
    def tokenizer_file(self) -> Path | None:
        return Path(self.file)

    @property
    def _key(self) -> tuple[str, int]:
        try:
            return self.file, os.stat(self.file).st_mtime_ns
        except OSError as error:
            raise UserError(f"there is not a tokenizer {self.file}: {error.strerror}") from error


@functools.lru_cache
def _load(file: str, modified: int):
    """The tokenizer of a file, cached until the file changes."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{file} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five characters
    return tokenizer


@functools.lru_cache
def _order(file: str, modified: int, vocabulary: int, end: str, padding: str | None, copy: bool) -> tuple[int, ...]:
    tokenizer = _load(file, modified)
    most = max(tokenizer.get_vocab().values(), default=-1)
    if most >= vocabulary:
        raise UserError(f"the tokenizer {file} has the id {most}, which does not fit a vocabulary of {vocabulary} ids")
    ids = {}
    for token in (end, padding or end):
        ids[token] = tokenizer.token_to_id(token)
        if ids[token] is None:
            raise UserError(f"the tokenizer {file} lacks the token {token!r}")
    order = list(range(vocabulary))
    place = ids[padding or end]
    if copy or place == ids[end]:
        order.append(place)
        place = vocabulary
    order[PADDING], order[place] = order[place], order[PADDING]
    last = len(order) - 1 - order[::-1].index(ids[end])  # the end itself, and not its copy at 0
    order[END], order[last] = order[last], order[END]
    return tuple(order)


@functools.lru_cache
def _places(order: tuple[int, ...]) -> dict[int, int]:
    """By id there, the id here; of two the one that is not padding."""
    return {there: here for here, there in enumerate(order)} | {
        there: here for here, there in enumerate(order) if here != PADDING
    }
