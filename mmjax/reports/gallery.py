"""What a model has made, to look at and to listen to: files, a contact sheet, and one page that holds it all."""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mmjax.data.clean import opencv
from mmjax.data.inputs import Input, SpectrogramInput, TextInput, WaveformInput
from mmjax.data.sources.base import Recording
from mmjax.files import explained, write_atomic
from mmjax.metrics.audio import frames
from mmjax.reports.page import render
from mmjax.reports.plots import data_uri, png, spectrum_pixels
from mmjax.types import Batch, Image, Label, Spectrogram, Text, Vector

SHEET, PAGE = "sheet.png", "report.html"
# Of a contact sheet: how large a picture is and how far it is from the next, pixels, and how many are in a row at most.
TILE, GAP, COLUMNS = 128, 8, 8


@dataclasses.dataclass(frozen=True)
class Piece:
    """One thing made, or given: as a file, to be seen, and in words; None where it is not so to be had."""

    suffix: str = ""
    content: bytes | None = None
    pixels: UInt8[np.ndarray, "H W C"] | None = None
    words: str | None = None
    answer: Any = None
    """What JSON keeps of it."""

    @property
    def shown(self) -> dict[str, Any]:
        """What a page shows of it."""
        sounds = self.suffix == ".wav"
        look = "spectrum" if sounds else "small" if self.pixels is not None and max(self.pixels.shape) < 96 else ""
        return {
            "picture": None if self.pixels is None else data_uri("image/png", png(self.pixels)),
            "look": look,
            "sound": data_uri("audio/wav", self.content) if sounds and self.content is not None else None,
            "words": self.words,
        }


def show_made(input: Input, predicted: Mapping[str, np.ndarray]) -> list[Piece]:
    """What an output made of a feature that `input` reads, example by example.

    `predicted` are its predictions, by what the feature is: `ids` Int[B N] of a text, `values` of a picture Float[B H W
    C] or a spectrum Float[B T M] with or without `mask` Bool[B T] and its sound, `samples` Float[B S]; `probabilities`
    Float[B S K] of a label, `mean` and `deviation` Float[B S Q] of a quantity. Where all examples are the same, as
    where nothing is drawn at random, there is one.
    """
    count = len(next(iter(predicted.values())))
    alike = all((array == array[:1]).all() for array in predicted.values())
    rows = ({name: array[row] for name, array in predicted.items()} for row in range(1 if alike else count))
    return [_show(input, row) for row in rows]


def show_raw(raw: UInt8[np.ndarray, "H W C"] | Recording) -> Piece:
    """A picture, or a recording with its spectrogram."""
    if not isinstance(raw, Recording):
        return Piece(".png", png(raw), raw)
    return Piece(".wav", _wav(raw), spectrum_pixels(frames(raw.samples, raw.rate)))


def show_given(inputs: Mapping[str, Input], batch: Batch) -> dict[str, Piece]:
    """What the first example of a batch has, as the model reads it."""
    pieces = {}
    for name, input in inputs.items():
        if batch.present[name][0]:
            values = batch.values[name][0]
            row = {"ids": values} if isinstance(input, TextInput) else {"values": values}
            pieces[name] = _show(input, row | ({"mask": batch.mask[name][0]} if name in batch.mask else {}))
    return pieces


def _show(input: Input, row: Mapping[str, np.ndarray]) -> Piece:
    """What a row of predictions, or of a batch, is; how texts read and frames sound is the input's to tell."""
    match input.feature:
        case Image():
            return show_raw(unread(input, row))
        case Spectrogram():
            sound = unread(input, row)
            assert isinstance(sound, Recording)
            return Piece(".wav", _wav(sound), spectrum_pixels(_frames(row)))
        case Text():
            assert isinstance(input, TextInput)
            text = input.decode(row["ids"])
            return Piece(".txt", f"{text}\n".encode(), words=text, answer=text)
        case Label(names, _):
            best = [(names[int(slot.argmax())], float(slot.max())) for slot in row["probabilities"]]
            words = ", ".join(f"{name} {share:.0%}" for name, share in best)
            return Piece(words=words, answer=[{"class": name, "probability": share} for name, share in best])
        case Vector():
            slots = list(zip(row["mean"].tolist(), row["deviation"].tolist(), strict=True))
            words = "; ".join(", ".join(f"{m:.2f} ± {d:.2f}" for m, d in zip(*slot, strict=True)) for slot in slots)
            return Piece(words=words, answer=[{"mean": mean, "deviation": deviation} for mean, deviation in slots])
    raise TypeError(f"{input.feature} is no feature")


def unread(input: Input, row: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "H W C"] | Recording:
    """The picture or recording that one row of predictions, or of a batch, is: what `input` might have read."""
    if isinstance(input, WaveformInput):
        return Recording(row["values"][row["mask"]], input.rate)
    if not isinstance(input, SpectrogramInput):
        return (row["values"] * 255).round().astype(np.uint8)
    frames = _frames(row)
    if "samples" not in row:
        return input.sound(frames)
    return Recording(row["samples"][: len(frames) * int(input.scale["hop"])], input.rate)


def _frames(row: Mapping[str, np.ndarray]) -> Float[np.ndarray, "T M"]:
    """The real frames, one at least: no files are empty."""
    frames = row["values"][row["mask"]] if "mask" in row else row["values"]
    return frames if len(frames) else np.zeros((1, frames.shape[1]), np.float32)


def _wav(recording: Recording) -> bytes:
    """16-bit WAV."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, recording.samples, recording.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write_gallery(
    folder: str | os.PathLike[str],
    title: str,
    facts: Mapping[str, Any],
    given: Mapping[str, Piece],
    made: Mapping[str, Sequence[Piece]],
) -> dict[str, list[str]]:
    """Writes `made`, by output, into a folder: OUTPUT-1.png, OUTPUT-2.png, ...; sheet.png, if there is something to
    see; and report.html, which shows `facts` and `given` too.

    Returns the names of every output's files. Raises UserError where they cannot be written.
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for name, pieces in made.items():
        for number, piece in enumerate(pieces, 1):
            if piece.content is not None:
                path = write_atomic(folder / f"{name}-{number}{piece.suffix}", piece.content)
                files.setdefault(name, []).append(path.name)
    sheet = draw_sheet(made)
    if sheet is not None:
        write_atomic(folder / SHEET, sheet)
    shown = {name: [piece.shown for piece in pieces] for name, pieces in made.items()}
    seen = {name: piece.shown for name, piece in given.items()}
    write_atomic(folder / PAGE, render("gallery.html", title=title, facts=facts, given=seen, made=shown))
    return files


def draw_sheet(made: Mapping[str, Sequence[Piece]]) -> bytes | None:
    """A PNG of all pictures and spectrograms, in rows, each output in rows of its own; None where there are none."""
    tiles = [[_tile(piece.pixels) for piece in pieces if piece.pixels is not None] for pieces in made.values()]
    columns = min(COLUMNS, max(1, *map(len, tiles)))
    rows = []
    for line in tiles:
        for start in range(0, len(line), columns):
            row = np.concatenate(line[start : start + columns], 1)
            missing = columns * row.shape[0] - row.shape[1]
            rows.append(np.pad(row, ((0, 0), (0, missing), (0, 0)), constant_values=255))
    return png(np.concatenate(rows)) if rows else None


def _tile(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "S S 3"]:
    """A picture as large as fits into a square on white."""
    cv2 = opencv()
    scale = TILE / max(pixels.shape[:2])
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    fitted = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    fitted = np.broadcast_to(fitted.reshape(*size[::-1], -1), (*size[::-1], 3))
    square = np.full((TILE + GAP, TILE + GAP, 3), 255, np.uint8)
    square[: size[1], : size[0]] = fitted
    return square
