"""interactions: synthetic data of two modalities and a label with known information."""

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np
from jaxtyping import UInt8

from mmjax.data.mirror import data_root
from mmjax.data.sources.base import Recording, Records, Source
from mmjax.errors import UserError
from mmjax.types import Information

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
MOST_BITS = 4
CLASSES = tuple(str(label) for label in range(2**MOST_BITS))

Form = Literal["tokens", "picture", "sound"]

# What says that a slot has a value, by slot and value: either of two letters, a bar, a tone.
WORDS = (("ab", "cd"), ("ef", "gh"), ("ij", "kl"), ("mn", "op"))
FILLERS = "0123456789"
MOST_FILLERS = 2
MOST_CHARACTERS = MOST_BITS + MOST_FILLERS

CELL = 8  # pixels of a picture's cells, of which there are two rows of two
SIDE = 2 * CELL
BAR = (2, 6)  # width and length, pixels

RATE = 8000
HERTZ = ((350, 500), (700, 950), (1250, 1600), (2100, 2700))
BEAT = 960  # samples that a slot's turn lasts, of which the tone takes some
TONE = 640
SECONDS = MOST_BITS * BEAT / RATE


@chz.chz
class Interactions(Source):
    """A label of a few bits that A, B, each of them, or only both together determine.

    A carries its unique bits, the redundant ones and bits s_a; B its unique bits, the redundant ones and bits s_b; all
    of them are uniform and independent. The label's binary digits, the highest first, are the unique bits of A, those
    of B, the redundant ones and s_a xor s_b, each flipped with probability `noise`. Nothing is downloaded or written.

    Raw fields: `a` and `b`, in the forms of `bits_to_text`, `bits_to_image` or `bits_to_audio`, from which the bits can
    be read without error; `label`, an index into CLASSES; and `a_bits` and `b_bits`, the bits that each carries in the
    order above, None where it carries none.
    """

    unique_a: int = chz.field(default=0, doc="bits of the label in A only")
    unique_b: int = chz.field(default=0, doc="bits of the label in B only")
    redundant: int = chz.field(default=0, doc="bits of the label in both A and B")
    synergy: int = chz.field(default=4, doc="bits of the label that only A and B together determine")
    noise: float = chz.field(default=0.0, doc="probability that a bit of the label is flipped")
    a: Form = chz.field(default="tokens", doc="the form of A")
    b: Form = chz.field(default="picture", doc="the form of B")
    seed: int = chz.field(default=0, doc="seed of all data")
    train: int = chz.field(default=16384, doc="examples of the train split")
    validation: int = chz.field(default=1024, doc="examples of the validation split")
    test: int = chz.field(default=2048, doc="examples of the test split")

    @chz.validate
    def _check(self) -> None:
        if min(self._counts) < 0 or not 1 <= self.bits <= MOST_BITS or not 0 <= self.noise <= 0.5:
            raise UserError(f"interactions needs 1 to {MOST_BITS} bits in all and noise from 0 to 0.5, and got {self}")
        if self.seed < 0 or min(self.train, self.validation, self.test) < 1:
            raise UserError(f"interactions needs a seed of 0 or more and at least 1 example a split, and got {self}")

    @property
    def _counts(self) -> tuple[int, int, int, int]:
        return self.unique_a, self.unique_b, self.redundant, self.synergy

    @property
    def bits(self) -> int:
        """Bits of the label."""
        return sum(self._counts)

    @property
    def information(self) -> Information:
        """The partial information decomposition of I(A, B; Y), exactly.

        A bit of the label and its noise are independent of all others, and so is the part of A and B that carries it:
        the system is a product of one-bit systems, over which the decomposition of Bertschinger et al. (2014) is
        additive (Rauh et al. 2023). In each of them I(A, B; Y) is 1 - h2(noise), h2 being the binary entropy, and
        belongs to one part: unique where the other modality is constant, redundant where both are the same bit, and
        synergy where each modality alone is independent of Y.
        """
        entropy = -sum(chance * math.log2(chance) for chance in (self.noise, 1 - self.noise) if chance)
        return Information(*(count * (1 - entropy) for count in self._counts))

    @property
    def best_accuracy(self) -> float:
        """The probability that no bit is flipped: the highest possible accuracy, on average."""
        return (1 - self.noise) ** self.bits

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def open(self, data_dir: str, split: str) -> Records:
        return InteractionRecords(self, split)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        if manual_dir:
            raise UserError("interactions is generated and reads no files: leave out manual_dir")
        return data_root(data_dir)


class InteractionRecords:
    """The examples of one split of interactions."""

    def __init__(self, source: Interactions, split: str):
        sizes = {"train": source.train, "validation": source.validation, "test": source.test}
        self._source, self._split, self._size = source, split, sizes[split]
        for_fingerprint = (source.seed, split, self._size, *source._counts, source.noise, source.a, source.b)
        self.fingerprint = "/".join(["interactions", VERSION, *map(str, for_fingerprint)])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._size:
            raise IndexError(f"{self._split} has {self._size} examples, and no {index}")
        source = self._source
        # Bits are drawn before flips, and these before forms: whatever the noise and the forms, the bits are the same.
        rng = np.random.default_rng((source.seed, SPLITS.index(self._split), index))
        drawn = iter(rng.integers(2, size=source.bits + source.synergy).tolist())
        unique_a, unique_b, redundant, part_a, part_b = (
            list(itertools.islice(drawn, count)) for count in (*source._counts, source.synergy)
        )
        told = [*unique_a, *unique_b, *redundant, *(one ^ other for one, other in zip(part_a, part_b, strict=True))]
        flips = (rng.random(source.bits) < source.noise).tolist()
        label = 0
        for bit, flip in zip(told, flips, strict=True):
            label = 2 * label + (bit ^ flip)
        a_bits, b_bits = unique_a + redundant + part_a, unique_b + redundant + part_b
        return {
            "a": _FORMS[source.a](a_bits, rng),
            "b": _FORMS[source.b](b_bits, rng),
            "label": label,
            "a_bits": a_bits or None,
            "b_bits": b_bits or None,
        }

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"


def bits_to_text(bits: list[int], rng: np.random.Generator) -> str:
    """A letter for each slot in turn, and one or two digits without meaning."""
    choices = rng.integers(2, size=len(bits)).tolist()
    letters = [WORDS[slot][bit][choice] for slot, (bit, choice) in enumerate(zip(bits, choices, strict=True))]
    fillers = [FILLERS[digit] for digit in rng.integers(len(FILLERS), size=rng.integers(1, MOST_FILLERS + 1))]
    return "".join(letters + fillers)


def bits_to_image(bits: list[int], rng: np.random.Generator) -> UInt8[np.ndarray, "16 16 1"]:
    """A bright bar in the cell of each slot, in noise: horizontal (0) or vertical (1)."""
    grey, contrast = rng.uniform((110, 60), (140, 90)).tolist()
    pixels = rng.uniform(grey - 20, grey + 20, (SIDE, SIDE))
    width, length = BAR
    across, shifts = (CELL - width) // 2, rng.integers(CELL - length + 1, size=len(bits)).tolist()
    for slot, (bit, shift) in enumerate(zip(bits, shifts, strict=True)):
        top, left = CELL * (slot // 2), CELL * (slot % 2)
        square = pixels[top : top + CELL, left : left + CELL]
        (square.T if bit else square)[across : across + width, shift : shift + length] += contrast
    return pixels.astype(np.uint8)[:, :, None]


def bits_to_audio(bits: list[int], rng: np.random.Generator) -> Recording:
    """A tone for each slot in turn, at one of the slot's two frequencies, in white noise."""
    samples = 0.05 * rng.standard_normal(MOST_BITS * BEAT, np.float32)
    times = 2 * np.pi / RATE * np.arange(TONE, dtype=np.float32)
    for slot, bit in enumerate(bits):
        start = slot * BEAT + rng.integers(BEAT - TONE + 1)
        phase, loudness = rng.uniform((0, 0.2), (2 * np.pi, 0.5)).tolist()
        samples[start : start + TONE] += loudness * np.sin(HERTZ[slot][bit] * times + phase)
    return Recording(samples, RATE)


_FORMS = {"tokens": bits_to_text, "picture": bits_to_image, "sound": bits_to_audio}
