"""Decoding and validation of raw fields; `BadInput` says why a value cannot be used."""

import contextlib
import difflib
import functools
import io
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from mmjax.data.headers import image_size
from mmjax.data.sources.base import Recording, Records, Unreadable
from mmjax.errors import UserError


class BadInput(Exception):
    """A field of an example cannot be used; str() says why."""


class WrongType(BadInput):
    """The field has a type that its input never reads, such as a float where labels are expected."""


MAX_PIXELS = 2**26  # 8,192 x 8,192: 200 MB as RGB
MAX_SAMPLES = 2**26  # 2 hours at 8 kHz: 256 MB as float32
MAX_RATE = 1_000_000  # no recorder takes more samples a second, and to resample from odd rates costs memory by the rate
LONGEST_NAME = 50  # characters of a label that are looked at and shown


# How encoded pictures begin, and what stands at the end of a whole one. A part of a JPEG may decode to grey, one of a
# PNG makes its library write to standard error, so both are looked at first.
_PICTURES = {b"\x89PNG": ("PNG", b"IEND\xaeB`\x82"), b"\xff\xd8\xff": ("JPEG", b"\xff\xd9")}
_TAIL = 64  # bytes that may hold the end mark: some writers pad
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what a WAV that was streamed says of its size


@functools.cache
def opencv() -> ModuleType:
    """OpenCV, limited to the calling thread: its idle threads spin and slow the training step."""
    import cv2

    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # BadInput says what it could not decode
    return cv2


@contextlib.contextmanager
def bad_input_on_error(reason: str) -> Iterator[None]:
    """Turns every error of a decoder, out of memory included, into BadInput with this reason."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # OpenCV, libsndfile and SciPy have errors of their own, and NumPy's on top
        raise BadInput(reason) from error


def read_example(records: Records, index: int) -> dict[str, Any]:
    """The raw fields of an example; BadInput where its source fails to read it."""
    try:
        return records[index]
    except UserError:
        raise
    except Exception as error:  # any decoder, on arbitrary bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        frames = traceback.extract_tb(error.__traceback__)
        place = f", {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
        raise BadInput(f"the example cannot be read ({reason}{place})") from error


def take(example: Mapping[str, Any], field: str) -> Any:
    """A raw field of an example. Raises BadInput where it is missing or could not be read."""
    if field not in example:
        raise BadInput(f"the field {field!r} is missing")
    if isinstance(example[field], Unreadable):
        raise BadInput(example[field].reason)
    return example[field]


def decode_image(
    raw: Any, channels: int, side: int | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W C"]:
    """Decodes an image, or takes uint8[H W] or [H W C]; returns 1 or 3 (RGB) channels.

    Reads PNG, JPEG, BMP, PNM, GIF, WebP and TIFF. Transparency is blended with white; 16-bit images lose their lower
    byte. Where no side needs to be longer than `side`, a JPEG is decoded at a half, a quarter or an eighth of its size,
    as long as its sides are not shorter. An image whose header announces more than `max_pixels` is not decoded.
    """
    cv2 = opencv()
    pixels = _decode_picture(raw, side, max_pixels) if isinstance(raw, bytes) else raw
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise WrongType(f"an image must be bytes or uint8 pixels, not {_kind(pixels)}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise BadInput(f"pixels of shape {pixels.shape} are not an image")
    if pixels.shape[2] == 4:
        opacity = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = (pixels[:, :, :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.repeat(pixels, 3, axis=2)


def image_shape(raw: Any, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of what `decode_image` takes; of a file by its header, before it is turned upright."""
    if isinstance(raw, bytes):
        with bad_input_on_error(_unreadable(raw)):
            width, height = image_size(raw)
        if width * height > max_pixels:
            raise BadInput(f"the image has {width} x {height} pixels, more than max_pixels={max_pixels}")
        return height, width
    if not isinstance(raw, np.ndarray):
        raise WrongType(f"an image must be bytes or uint8 pixels, not {_kind(raw)}")
    if raw.ndim not in (2, 3) or 0 in raw.shape:
        raise BadInput(f"pixels of shape {raw.shape} are not an image")
    return raw.shape[0], raw.shape[1]


def _unreadable(content: bytes) -> str:
    return f"{len(content)} bytes are not an image that OpenCV can decode"


def _decode_picture(content: bytes, side: int | None, max_pixels: int) -> np.ndarray:
    """uint8[H W], RGB or RGBA, as stored; a JPEG no larger than needed for sides of `side` pixels."""
    cv2 = opencv()
    if not content:
        raise BadInput("the image is empty")
    for start, (name, end) in _PICTURES.items():
        if content.startswith(start) and end not in content[-_TAIL:]:
            raise BadInput(f"the {name} ends early")
    height, width = image_shape(content, max_pixels)
    with bad_input_on_error(_unreadable(content)):
        # Only the colour mode turns a photograph as its camera was held, only the unchanged mode keeps transparency.
        jpeg = content.startswith(b"\xff\xd8")
        mode = _jpeg_mode(min(width, height), side) if jpeg else cv2.IMREAD_UNCHANGED
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
        if pixels is None:
            raise BadInput(_unreadable(content))
        if pixels.dtype == np.uint16:
            pixels = (pixels // 256).astype(np.uint8)
        if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _jpeg_mode(shortest: int, side: int | None) -> int:
    """OpenCV's mode for a JPEG: decoding at reduced size, where that suffices, takes half the time."""
    cv2 = opencv()
    reduced = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
    return next((mode for parts, mode in reduced if side and shortest // parts >= side), cv2.IMREAD_COLOR)


def decode_audio(
    raw: Any, seconds: float | None = None, max_samples: int = MAX_SAMPLES
) -> tuple[Float[np.ndarray, "T"], int]:
    """Mono float32 samples in [-1, 1] and their rate, of a `Recording` or a WAV, FLAC or Ogg file.

    Only the first `seconds` are decoded. Raises BadInput for a file with more than `max_samples` before that, over all
    channels.
    """
    if isinstance(raw, bytes):
        with _open_recording(raw, seconds, max_samples) as (file, count):
            samples, rate = file.read(count, dtype="float32", always_2d=True), file.samplerate
    else:
        samples, rate = _recording(raw)
    _check_rate(rate)
    samples = samples[: _count(seconds, rate)] if samples.ndim else samples
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    elif samples.dtype.kind != "f":
        raise WrongType(f"samples must be int16 or float, not {samples.dtype}")
    if samples.ndim == 2:  # [T, channels]
        samples = samples.mean(axis=1)
    if samples.ndim != 1 or not samples.size:
        raise BadInput("the recording is empty")
    samples = samples.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise BadInput(f"{np.sum(~np.isfinite(samples))} of {samples.size} samples are not finite")
    return samples, rate


def audio_length(raw: Any, seconds: float | None = None, max_samples: int = MAX_SAMPLES) -> tuple[int, int]:
    """How many samples `decode_audio` returns at most, and their rate; of a file by its header."""
    if isinstance(raw, bytes):
        with _open_recording(raw, seconds, max_samples) as (file, count):
            rate = file.samplerate
    else:
        samples, rate = _recording(raw)
        count = len(samples) if samples.ndim else 0
    _check_rate(rate)
    return min(count, _count(seconds, rate) or count), rate


def _recording(raw: Any) -> tuple[np.ndarray, int]:
    """The samples and the rate of a `Recording`."""
    if isinstance(raw, Recording) and isinstance(raw.samples, np.ndarray) and isinstance(raw.rate, int | np.integer):
        return raw.samples, int(raw.rate)
    raise WrongType(f"a recording must be a Recording or bytes, not {_kind(raw)}")


def _check_rate(rate: int) -> None:
    if not 0 < rate <= MAX_RATE:
        raise BadInput(f"a recording with {rate} samples per second")


def _count(seconds: float | None, rate: int) -> int | None:
    """The number of samples in this many seconds; None for all."""
    return None if seconds is None else math.ceil(seconds * rate)


@contextlib.contextmanager
def _open_recording(content: bytes, seconds: float | None, max_samples: int) -> Iterator[tuple[Any, int]]:
    """The opened file, and how many samples of it are read; BadInput for every error of libsndfile."""
    import soundfile

    # libsndfile accepts a truncated WAV; its header shows the truncation.
    if content[:4] == b"RIFF" and len(content) >= 8:
        declared = int.from_bytes(content[4:8], "little")
        if declared not in _UNKNOWN_SIZES and declared + 8 > len(content):
            raise BadInput(f"the WAV is truncated: {len(content)} bytes of {declared + 8}")
    unreadable = f"{len(content)} bytes are not a recording that libsndfile can decode"
    with bad_input_on_error(unreadable), soundfile.SoundFile(io.BytesIO(content)) as file:
        count = min(file.frames, _count(seconds, file.samplerate) or file.frames)
        if count * file.channels > max_samples:
            raise BadInput(
                f"the recording has {count * file.channels} samples ({file.channels} channels at {file.samplerate} a "
                f"second), and max_samples is {max_samples}"
            )
        yield file, count


def decode_text(raw: Any) -> str:
    """A non-empty text (str, or UTF-8 bytes) without surrounding white space."""
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        if not isinstance(text, str):
            raise WrongType(f"a text must be str, not {_kind(raw)}")
        text.encode()
    except UnicodeError as error:
        raise BadInput("the text is not valid Unicode") from error
    text = text.strip()
    if not text:
        raise BadInput("the text is empty")
    return text


def decode_labels(raw: Any, names: Sequence[str], slots: int) -> Int[np.ndarray, "S"]:
    """One label or up to `slots` of them, each an index into `names` or one of the names (str or UTF-8)."""
    try:
        labels = np.atleast_1d(np.asarray(raw))
    except ValueError as error:  # lists of unequal lengths
        raise WrongType(f"labels must be integers or names, not {_kind(raw)}") from error
    if labels.dtype.kind not in "iuUS" or labels.ndim != 1:
        raise WrongType(f"labels must be integers or names, not {_kind(raw)}")
    if not 0 < labels.size <= slots:
        raise BadInput(f"{labels.size} labels, but 1 to {slots} are expected")
    if labels.dtype.kind in "US":
        return np.array([_place(label, names) for label in labels.tolist()], np.int32)
    wrong = labels[(labels < 0) | (labels >= len(names))]
    if wrong.size:
        raise BadInput(f"label {wrong[0]} is out of range: there are {len(names)} classes")
    return labels.astype(np.int32)


def label_values(raw: Any) -> list[str | int]:
    """The labels of a raw field, without those that are none: texts and integers."""
    values = raw.tolist() if isinstance(raw, np.ndarray) else raw
    each = values if isinstance(values, list | tuple) else [values]
    texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in each]
    return [value for value in texts if isinstance(value, str | int) and value != ""]


def _place(label: str | bytes, names: Sequence[str]) -> int:
    """The index of a label in `names`; otherwise BadInput with the most similar names."""
    text = label.decode(errors="replace") if isinstance(label, bytes) else label
    try:
        return names.index(text)
    except ValueError:
        near = difflib.get_close_matches(text[:LONGEST_NAME], names) or names[:3]
        raise BadInput(
            f"label {text[:LONGEST_NAME]!r} is not one of the {len(names)} names, such as {', '.join(near)}"
        ) from None


def decode_vectors(raw: Any, size: int, slots: int) -> Float[np.ndarray, "S Q"]:
    """One vector of `size` finite numbers, or up to `slots` of them."""
    try:
        vectors = np.atleast_2d(np.asarray(raw, np.float32))
    except (TypeError, ValueError, OverflowError) as error:
        raise WrongType(f"vectors must be numbers, not {_kind(raw)}") from error
    if vectors.ndim != 2 or vectors.shape[1] != size or not 0 < len(vectors) <= slots:
        raise BadInput(f"the shape is {vectors.shape}, but 1 to {slots} vectors of {size} numbers are expected")
    if not np.isfinite(vectors).all():
        raise BadInput(f"{np.sum(~np.isfinite(vectors))} of {vectors.size} quantities are not finite")
    return vectors


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__
