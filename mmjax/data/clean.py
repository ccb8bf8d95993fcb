"""One raw field to one checked value of known kind, or `BadInput` with the reason."""

import functools
import io
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmjax.data.sources.base import Recording


class BadInput(Exception):
    """This field of this example cannot be used; str() says why."""


# How encoded pictures begin, and what stands at the end of a whole one. A part of a JPEG may decode to grey, one of a
# PNG makes its library write to standard error, so both are looked at first.
_PICTURES = {b"\x89PNG": ("PNG", b"IEND\xaeB`\x82"), b"\xff\xd8\xff": ("JPEG", b"\xff\xd9")}
_TAIL = 64  # bytes that may hold the end mark: some writers pad
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what a WAV that was streamed says of its size


@functools.cache
def opencv() -> ModuleType:
    """OpenCV, kept to the calling thread: its own threads spin while idle and slow the training step."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def clean_picture(raw: Any, channels: int, side: int | None = None) -> UInt8[np.ndarray, "H W C"]:
    """Decodes PNG, JPEG and what else OpenCV reads, or takes uint8[H W] or [H W C]; gives 1 (grey) or 3 (RGB) channels.

    Transparent pictures are laid on white; 16-bit ones lose their lower byte. Where no side need be longer than `side`,
    a JPEG comes at a half, a quarter or an eighth of its size, as long as its sides are not shorter.
    """
    cv2 = opencv()
    pixels = _decode_picture(raw, side) if isinstance(raw, bytes) else raw
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise BadInput(f"a picture is bytes or uint8 pixels, not {_kind(pixels)}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise BadInput(f"pixels of shape {pixels.shape} are no picture")
    if pixels.shape[2] == 4:
        opacity = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = (pixels[:, :, :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.repeat(pixels, 3, axis=2)


def _decode_picture(content: bytes, side: int | None) -> np.ndarray:
    """uint8[H W], RGB or RGBA, as stored; a JPEG no larger than it need be for sides of `side` pixels."""
    cv2 = opencv()
    if not content:
        raise BadInput("the picture has no bytes")
    for start, (name, end) in _PICTURES.items():
        if content.startswith(start) and end not in content[-_TAIL:]:
            raise BadInput(f"the {name} ends early")
    # Only the colour mode turns a photograph as its camera was held, only the unchanged mode keeps transparency.
    mode = _jpeg_mode(content, side) if content.startswith(b"\xff\xd8") else cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    if pixels is None:
        raise BadInput(f"{len(content)} bytes are no picture that OpenCV can decode")
    if pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _jpeg_mode(content: bytes, side: int | None) -> int:
    """How OpenCV is to decode a JPEG: by its coarse frequencies alone where these suffice, in half the time."""
    cv2 = opencv()
    shortest = 0 if side is None else _jpeg_side(content)
    reduced = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
    return next((mode for parts, mode in reduced if side and shortest // parts >= side), cv2.IMREAD_COLOR)


def _jpeg_side(content: bytes) -> int:
    """The shorter side of a JPEG as its frame header tells it; 0 if there is none (ITU-T T.81, annex B)."""
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker, size = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return min(int.from_bytes(content[place + at : place + at + 2], "big") for at in (5, 7))
        place += 2 + size
    return 0


def clean_recording(raw: Any) -> tuple[Float[np.ndarray, "T"], int]:
    """A `Recording`, or the bytes of a WAV, FLAC or Ogg file, as mono float32 samples in [-1, 1] and their rate."""
    if isinstance(raw, bytes):
        samples, rate = _decode_recording(raw)
    elif isinstance(raw, Recording):
        samples, rate = raw.samples, raw.rate
    else:
        raise BadInput(f"a recording is a Recording or bytes, not {_kind(raw)}")
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    elif samples.dtype.kind != "f":
        raise BadInput(f"samples are int16 or float, not {samples.dtype}")
    if samples.ndim == 2:  # [T, channels]
        samples = samples.mean(axis=1)
    if samples.ndim != 1 or not samples.size:
        raise BadInput("the recording is empty")
    if rate <= 0:
        raise BadInput(f"a recording of {rate} samples a second")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise BadInput(f"{np.sum(~np.isfinite(samples))} of {samples.size} samples are not finite")
    return samples, rate


def _decode_recording(content: bytes) -> tuple[np.ndarray, int]:
    """float32[T, channels] and the rate."""
    import soundfile

    # libsndfile takes what is there of a truncated WAV; its header tells.
    if content[:4] == b"RIFF" and len(content) >= 8:
        declared = int.from_bytes(content[4:8], "little")
        if declared not in _UNKNOWN_SIZES and declared + 8 > len(content):
            raise BadInput(f"the WAV is truncated: {len(content)} bytes of {declared + 8}")
    try:
        return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadInput(f"{len(content)} bytes are no recording that libsndfile can decode") from error


def clean_text(raw: Any) -> str:
    """A text (str, or bytes in UTF-8) that says something, without the space around it."""
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        if not isinstance(text, str):
            raise BadInput(f"a text is str, not {_kind(raw)}")
        text.encode()
    except UnicodeError as error:
        raise BadInput("the text is not valid Unicode") from error
    text = text.strip()
    if not text:
        raise BadInput("the text is empty")
    return text


def clean_labels(raw: Any, classes: int, slots: int) -> Int[np.ndarray, "S"]:
    """One answer or up to `slots` of them, each in [0, classes)."""
    labels = np.atleast_1d(np.asarray(raw))
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise BadInput(f"labels are integers, not {_kind(raw)}")
    if not 0 < labels.size <= slots:
        raise BadInput(f"{labels.size} labels where 1 to {slots} are wanted")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise BadInput(f"label {wrong[0]} is out of range: there are {classes} classes")
    return labels.astype(np.int32)


def clean_quantities(raw: Any, size: int, slots: int) -> Float[np.ndarray, "S Q"]:
    """One vector of `size` finite numbers or up to `slots` of them."""
    try:
        vectors = np.atleast_2d(np.asarray(raw, np.float32))
    except (TypeError, ValueError) as error:
        raise BadInput(f"quantities are numbers, not {_kind(raw)}") from error
    if vectors.ndim != 2 or vectors.shape[1] != size or not 0 < len(vectors) <= slots:
        raise BadInput(f"quantities of shape {vectors.shape} where 1 to {slots} vectors of {size} are wanted")
    if not np.isfinite(vectors).all():
        raise BadInput(f"{np.sum(~np.isfinite(vectors))} of {vectors.size} quantities are not finite")
    return vectors


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
