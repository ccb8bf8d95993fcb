"""The Free Spoken Digit Dataset (Jackson et al. 2018).

3,000 recordings of six speakers, 8 kHz mono int16 WAV files.
"""

import hashlib
import io
import re
import wave
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mmjax.data.archives import open_zip
from mmjax.errors import UserError
from mmjax.files import read_regular

RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
LARGEST = 2**20  # bytes of a recording; the longest has 37,000
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
# The host repacks the archive, so only the checksum of the recordings inside is fixed.
DIGEST = "710951a2589b3ada7d439d4478090cd83b6eed3c738ae7ae04a030fa0f61ed88"

Names = tuple[str, ...]


def recording_names() -> Names:
    """The file names of all recordings: DIGIT_SPEAKER_INDEX.wav."""
    return tuple(f"{digit}_{speaker}_{index}.wav" for digit in range(10) for speaker in SPEAKERS for index in range(50))


def parse_name(name: str) -> tuple[int, str, int] | None:
    """(digit, speaker, index) of a recording's file name; None for other names."""
    match = re.fullmatch(r"(\d)_([a-z]+)_(\d+)\.wav", name)
    return (int(match[1]), match[2], int(match[3])) if match else None


def digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of recordings (name, bytes), independent of their order."""
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folder_reader(folder: Path) -> Callable[[str], bytes]:
    """Reads recordings by name from a folder of WAV files."""
    return lambda name: read_regular(folder / name, LARGEST)


def archive_reader(path: Path) -> Callable[[str], bytes]:
    """Reads recordings by name from the repository's archive; UserError if any differs."""
    try:
        with open_zip(path) as (_, read):
            contents = {
                name: read(f"free-spoken-digit-dataset-{COMMIT}/recordings/{name}") for name in recording_names()
            }
    except OSError as error:
        raise UserError(f"{path} is not the archive of {URL} ({error}): delete it and run the command again") from None
    if digest(contents.items()) != DIGEST:
        raise UserError(f"the recordings in {path} are not those of {URL}: delete it and run the command again")
    return contents.__getitem__


def decode(content: bytes) -> np.ndarray | None:
    """int16[T] of a WAV file; None where it is truncated, empty or not 8 kHz mono 16 bit."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            frames, samples = file.getnframes(), file.readframes(file.getnframes())
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
    except Exception:  # wave.Error, EOFError, struct.error and what else its parser meets
        return None
    if form != (1, 2, RATE) or frames == 0 or len(samples) != 2 * frames:
        return None
    return np.frombuffer(samples, "<i2").astype(np.int16)
