"""Inputs: raw fields to arrays of fixed shape."""

import abc
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chz
import numpy as np
from jaxtyping import Float32, UInt8

from mmjax.data import clean
from mmjax.data.augment import ImageAugment
from mmjax.data.tokenize import END, Bytes, Corpus, Tokenizer, write_tokenizer
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.types import Feature, Image, Label, Text, Vector

MOST_CLASSES = 100_000  # of labels that are learned


@chz.chz
class Input(abc.ABC):
    """Configuration that turns one raw field into a feature."""

    field: str | None = chz.field(default=None, doc="the raw field's name if it differs from the feature's")

    @property
    @abc.abstractmethod
    def feature(self) -> Feature:
        """The static shape of the arrays, to build models with."""

    @property
    def is_random(self) -> bool:
        """Whether `read` uses random numbers."""
        return False

    def reads(self, name: str) -> tuple[str, ...]:
        """The raw fields that this input, called `name`, reads."""
        return (self.field or name,)

    def take(self, example: Mapping[str, Any], name: str) -> Any:
        """The raw value of an example for this input, called `name`; None where the value is absent.

        Raises BadInput where a field is missing or could not be read.
        """
        values = [clean.take(example, field) for field in self.reads(name)]
        if any(value is None or value == [] for value in values if isinstance(value, list | None)):
            return None
        return values[0] if len(values) == 1 else values

    @property
    def scale(self) -> dict[str, Any]:
        """What its frames are, whatever their number: spectrograms of equal scales can replace each other."""
        return {}

    @abc.abstractmethod
    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The values and the mask of one example (no batch dimension).

        `rng` is for augmentation, None turns it off. An image has no mask. Raises BadInput where the raw value cannot
        be used.
        """

    def count_positions(self, raw: Any) -> int:
        """The most positions that `read` gives for a raw value, whatever is drawn; 0 where it cannot be read.

        By default those that it gives without augmentation. Raises UserError where there is no mask.
        """
        if not self.feature.has_mask:
            raise UserError(f"{type(self).__name__} makes no sequence: its values have no mask")
        with contextlib.suppress(clean.BadInput):
            mask = self.read(raw, None)[1]
            return int(np.sum(mask))  # type: ignore[arg-type]
        return 0

    def to_raw(self, row: Mapping[str, np.ndarray]) -> Any:
        """The raw value of an example's predictions, or of its part of a batch; None if there is none.

        Predictions are `values` and `mask` of an image or audio, also `samples` of a spectrogram, and `ids` of a text.
        """
        return None

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "Input":
        """This input with its tokenizer fitted to the training data; see `Data.fit_tokenizers`."""
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
class ImageInput(Input):
    """An image as Float[size width channels] in [0, 1], resized, and cropped only with `shorter_side`."""

    size: int = chz.field(doc="height, pixels")
    width: int | None = chz.field(default=None, doc="width, pixels; None: the height")
    channels: int = chz.field(default=3, doc="1 is grey, 3 is RGB")
    shorter_side: int | None = chz.field(
        default=None,
        doc="resize the shorter side to so many pixels and cut the middle out; None: resize both sides",
    )
    augment: ImageAugment = chz.field(default=ImageAugment(), doc="random changes in training")
    max_pixels: int = chz.field(
        default=clean.MAX_PIXELS, doc="a larger image is bad input and not decoded", metadata=OPERATIONAL
    )

    @chz.validate
    def _valid(self) -> None:
        if min(self._shape) < 1:
            raise ValueError("size and width must be 1 or more")
        if self.shorter_side is not None and self.shorter_side < max(self._shape):
            raise ValueError("shorter_side must not be below size and width, which are cut out of the resized picture")
        if self.max_pixels < 1:
            raise ValueError("max_pixels must be 1 or more")
        if self.channels not in (1, 3):
            raise ValueError("channels must be 1 or 3")

    @property
    def feature(self) -> Image:
        return Image(*self._shape, self.channels)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.size, self.size if self.width is None else self.width

    @property
    def is_random(self) -> bool:
        return self.augment.active

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, None]:
        with clean.bad_input_on_error("the picture cannot be resized"):
            side = self.shorter_side or max(self._shape)
            pixels = clean.decode_image(raw, self.channels, side, self.max_pixels)
            picture = resize(pixels, *self._shape) if self.shorter_side is None else self._crop(pixels, side)
        return (picture if rng is None else self.augment(picture, rng)), None

    def _crop(self, pixels: UInt8[np.ndarray, "h w C"], side: int) -> Float32[np.ndarray, "H W C"]:
        """The middle of the picture after its shorter side is `side` pixels long."""
        shorter = min(pixels.shape[:2])
        picture = resize(pixels, *(max(side, round(each * side / shorter)) for each in pixels.shape[:2]))
        top, left = ((there - here) // 2 for there, here in zip(picture.shape, self._shape, strict=False))
        height, width = self._shape
        return picture[top : top + height, left : left + width]

    def to_raw(self, row: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "H W C"]:
        return (row["values"] * 255).round().astype(np.uint8)


def resize(pixels: UInt8[np.ndarray, "h w C"], height: int, width: int) -> Float32[np.ndarray, "H W C"]:
    """The picture at another size, in [0, 1]."""
    cv2 = clean.opencv()
    channels = pixels.shape[2]
    if pixels.shape[:2] != (height, width):
        # Averaging over areas when shrinking is what keeps fine structure from turning into noise.
        how = cv2.INTER_AREA if pixels.shape[0] > height and pixels.shape[1] > width else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=how)
    return np.multiply(pixels.reshape(height, width, channels), np.float32(1 / 255), dtype=np.float32)


@chz.chz
class TextInput(Input):
    """A text as Int[length] token ids; a longer one is cut and still ends with the end token.

    Of a list of texts, such as the captions of a picture, training draws one each time, and evaluation reads the first;
    retrieval is evaluated with all.
    """

    length: int = chz.field(doc="largest number of tokens, the end included")
    tokenizer: Tokenizer = chz.field(default=Bytes(), doc="how text becomes token ids")

    @chz.validate
    def _valid(self) -> None:
        if self.length < 2:
            raise ValueError("length must be at least 2: a token and the end")

    @property
    def feature(self) -> Text:
        return Text(self.length, self.tokenizer.size)

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(raw, list | tuple) and raw:
            raw = raw[0 if rng is None else int(rng.integers(len(raw)))]
        ids = self.tokenizer.encode(clean.decode_text(raw))
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], END]
        values = np.zeros(self.length, np.int32)
        values[: len(ids)] = ids
        return values, np.arange(self.length) < len(ids)

    def count_positions(self, raw: Any) -> int:
        longest = 0
        for text in raw if isinstance(raw, list | tuple) else [raw]:
            with contextlib.suppress(clean.BadInput):
                longest = max(longest, len(self.tokenizer.encode(clean.decode_text(text))))
        return min(longest, self.length)

    def to_raw(self, row: Mapping[str, np.ndarray]) -> str:
        return self.decode(row["ids"] if "ids" in row else row["values"])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(np.asarray(ids).tolist())

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "TextInput":
        return chz.replace(self, tokenizer=self.tokenizer.fit_tokenizers(corpus, stored))

    @property
    def tokenizer_file(self) -> Path | None:
        return self.tokenizer.tokenizer_file

    @property
    def moved_ids(self) -> dict[int, int]:
        return self.tokenizer.moved_ids


@chz.chz
class LabelInput(Input):
    """Labels from `names` as Int[slots]: one, or several per example with the other slots masked.

    The raw field holds names, or indices into `names` where these are given. Names that are not given are learned: all
    values that the training split has, in order.
    """

    names: tuple[str, ...] | None = chz.field(
        default=None,
        doc="the classes; a number in the raw field is an index into them, from 0; None: learned from the train split",
    )
    slots: int = chz.field(default=1, doc="largest number of labels per example")
    file: str | None = chz.field(default=None, doc="a JSON file with the learned names", metadata=OPERATIONAL)

    @chz.validate
    def _valid(self) -> None:
        if self.names is not None and not self.names:
            raise ValueError("names must not be empty")
        names = self.names or ()
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise ValueError(f"names must differ, and {twice[0]!r} is there twice")
        if self.slots < 1:
            raise ValueError("slots must be 1 or more")

    @property
    def feature(self) -> Label:
        if self.names is None:
            raise ValueError("these labels are not learned yet: use what Data.fit_tokenizers returns")
        return Label(self.names, self.slots)

    def fit_tokenizers(self, corpus: Corpus, stored: Path | None) -> "LabelInput":
        if self.names is not None:
            return self
        file = stored if stored is not None and stored.is_file() else self._learn(corpus)
        return chz.replace(self, names=tuple(json.loads(file.read_text())), file=str(file))

    @property
    def tokenizer_file(self) -> Path | None:
        return None if self.file is None else Path(self.file)

    def _learn(self, corpus: Corpus) -> Path:
        """The file of all values that the training split has, which is made unless it is there."""
        file = corpus.file("labels", f"{corpus.records.fingerprint}/{corpus.field}")
        if not file.is_file():
            found = {value for raw in corpus.values() for value in clean.label_values(raw)}
            if not 0 < len(found) <= MOST_CLASSES:
                reason = f"more than {MOST_CLASSES} different values" if found else "no value"
                raise UserError(f"the field {corpus.field} has {reason} in the training split: it cannot be a label")
            names = sorted(found, key=lambda value: (isinstance(value, str), value))
            write_tokenizer(file, json.dumps([str(name) for name in names]))
        return file

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        if self.file is not None:
            raw = [str(value) for value in clean.label_values(raw)]
        labels = clean.decode_labels(raw, self.feature.names, self.slots)
        values = np.zeros(self.slots, np.int32)
        values[: len(labels)] = labels
        return values, np.arange(self.slots) < len(labels)


@chz.chz
class VectorInput(Input):
    """Vectors of `size` numbers as Float[slots size]; slots that an example does not fill are masked."""

    size: int = chz.field(doc="size of a vector")
    slots: int = chz.field(default=1, doc="largest number of vectors per example")
    fields: tuple[str, ...] | None = chz.field(
        default=None, doc="raw fields of one number each that make the vector, such as columns of a table"
    )
    mean: tuple[float, ...] | None = chz.field(default=None, doc="subtracted from each number; None: nothing")
    deviation: tuple[float, ...] | None = chz.field(default=None, doc="what each is divided by then; None: 1")

    @chz.validate
    def _valid(self) -> None:
        if self.fields is not None and (len(self.fields) != self.size or self.field is not None):
            raise ValueError("fields must name as many raw fields as size says, and field must be left out")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if values is not None and len(values) != self.size:
                raise ValueError(f"{name} must hold as many numbers as size says")
        if min(self.deviation or (1.0,)) <= 0:
            raise ValueError("deviation must be above 0")
        if self.size < 1:
            raise ValueError("size must be 1 or more")
        if self.slots < 1:
            raise ValueError("slots must be 1 or more")

    @property
    def feature(self) -> Vector:
        return Vector(self.size, self.slots)

    def reads(self, name: str) -> tuple[str, ...]:
        return super().reads(name) if self.fields is None else self.fields

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        vectors = clean.decode_vectors(raw, self.size, self.slots)
        if self.mean is not None:
            vectors = vectors - np.array(self.mean, np.float32)
        if self.deviation is not None:
            vectors = vectors / np.array(self.deviation, np.float32)
        values = np.zeros((self.slots, self.size), np.float32)
        values[: len(vectors)] = vectors
        return values, np.arange(self.slots) < len(vectors)
