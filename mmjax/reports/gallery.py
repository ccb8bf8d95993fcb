"""Generated images, audio and texts as files, a contact sheet, and one page that shows them all."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mmjax.data.audio_inputs import real_frames
from mmjax.data.clean import opencv
from mmjax.data.inputs import Input
from mmjax.data.sources.base import Recording
from mmjax.files import explained, write_atomic
from mmjax.metrics.audio import log_mel_frames
from mmjax.reports.page import Card, Picture, Section, write_page
from mmjax.reports.plots import data_uri, picture_uri, png, spectrum_pixels, spectrum_uri
from mmjax.types import Batch, Feature

SHEET, PAGE = "sheet.png", "report.html"
# Of a contact sheet: how large a picture is and how far it is from the next, pixels, and how many are in a row at most.
TILE, GAP, COLUMNS = 128, 8, 8


@dataclasses.dataclass(frozen=True)
class Piece:
    """One generated or given item: as a file, as pixels, and in words; None where it has no such form."""

    suffix: str = ""
    content: bytes | None = None
    pixels: UInt8[np.ndarray, "H W C"] | None = None
    words: str | None = None
    answer: Any = None
    """What JSON keeps of it."""

    def picture(self, caption: str) -> Picture:
        """It as a page shows it."""
        uri = "" if self.pixels is None else data_uri("image/png", png(self.pixels))
        sound = self.content if self.suffix == ".wav" else None
        return Picture(uri, caption, "" if sound is None else data_uri("audio/wav", sound))


def show_generated(input: Input, predicted: Mapping[str, np.ndarray]) -> list[Piece]:
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
    return Piece(".wav", _wav(raw), spectrum_pixels(log_mel_frames(raw.samples, raw.rate)))


def show_given(inputs: Mapping[str, Input], batch: Batch) -> dict[str, Piece]:
    """What the first example of a batch has, as the model reads it."""
    pieces = {}
    for name, input in inputs.items():
        if batch.present[name][0]:
            row = {"values": batch.values[name][0]}
            pieces[name] = _show(input, row | ({"mask": batch.mask[name][0]} if name in batch.mask else {}))
    return pieces


def _show(input: Input, row: Mapping[str, np.ndarray]) -> Piece:
    """One row of predictions, or of a batch, as a piece."""
    if "probabilities" in row:
        best = [(input.feature.classes[int(slot.argmax())], float(slot.max())) for slot in row["probabilities"]]
        words = ", ".join(f"{name} {share:.0%}" for name, share in best)
        return Piece(words=words, answer=[{"class": name, "probability": share} for name, share in best])
    if "mean" in row:
        slots = list(zip(row["mean"].tolist(), row["deviation"].tolist(), strict=True))
        words = "; ".join(", ".join(f"{m:.2f} ± {d:.2f}" for m, d in zip(*slot, strict=True)) for slot in slots)
        return Piece(words=words, answer=[{"mean": mean, "deviation": deviation} for mean, deviation in slots])
    raw = input.to_raw(row)
    if input.feature.is_text:
        return Piece(".txt", f"{raw}\n".encode(), words=raw, answer=raw)
    if input.feature.drawn_as == "spectrogram":
        return Piece(".wav", _wav(raw), spectrum_pixels(real_frames(row)))
    return show_raw(raw)


def draw_feature(feature: Feature, values: np.ndarray, mask: np.ndarray | None) -> str | None:
    """An example's image or spectrogram as a data URI; None of what is not drawn."""
    draw = {"image": picture_uri, "spectrogram": spectrum_uri}.get(feature.drawn_as or "")
    return None if draw is None else draw(values if mask is None else values[mask])


def _wav(recording: Recording) -> bytes:
    """16-bit WAV."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, recording.samples, recording.rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write_gallery(
    folder: str | Path,
    title: str,
    facts: Mapping[str, Any],
    given: Mapping[str, Piece],
    made: Mapping[str, Sequence[Piece]],
) -> dict[str, list[str]]:
    """Writes what each output generated, `made`, into a folder as OUTPUT-1.png, OUTPUT-2.png, ...

    sheet.png holds all pictures, if there are any; report.html shows `facts` and `given` too.

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
    sections = [Section("Given", cards=[_card(list(given.items()))])] if given else []
    for name, pieces in made.items():
        numbered = [(str(number) if len(pieces) > 1 else "", piece) for number, piece in enumerate(pieces, 1)]
        sections.append(Section(name, cards=[_card(numbered)]))
    write_page(folder / PAGE, title, facts, sections)
    return files


def _card(pieces: Sequence[tuple[str, Piece]]) -> Card:
    """Pictures, sounds and texts with their names."""
    pictures = [piece.picture(name) for name, piece in pieces if piece.words is None]
    words = [(name, [(piece.words or "(nothing)", 0.0)]) for name, piece in pieces if piece.words is not None]
    return Card("", pictures, words)


def draw_sheet(made: Mapping[str, Sequence[Piece]]) -> bytes | None:
    """A PNG of all pictures and spectrograms, each output in rows of its own; None if there are none."""
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
