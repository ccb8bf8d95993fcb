"""The size of an encoded image from its header, without decoding."""

import re
import struct

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})")
_TIFF_WIDTH, _TIFF_HEIGHT, _SHORT = 256, 257, 3


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, BMP, PNM, GIF, WebP or TIFF.

    Raises:
        ValueError: it is none of these, or its header is damaged.
    """
    try:
        return _size(content)
    except (struct.error, KeyError) as error:
        raise ValueError("the header of the image is damaged") from error


def _size(content: bytes) -> tuple[int, int]:
    if content.startswith(b"\x89PNG"):
        return _png_size(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg_size(content)
    if content.startswith(b"GIF8"):
        return struct.unpack_from("<HH", content, 6)
    if content.startswith(b"BM"):
        (header,) = struct.unpack_from("<I", content, 14)
        width, height = struct.unpack_from("<HH" if header == 12 else "<ii", content, 18)
        return abs(width), abs(height)  # rows from the top downwards have a negative height
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp_size(content)
    if content.startswith((b"II*\0", b"MM\0*")):
        return _tiff_size(content, "<" if content.startswith(b"I") else ">")
    if match := _PNM.match(content):
        return int(match[1]), int(match[2])
    raise ValueError("it is not a PNG, JPEG, BMP, PNM, GIF, WebP or TIFF")


def _png_size(content: bytes) -> tuple[int, int]:
    """From the first chunk (ISO/IEC 15948).

    OpenCV allocates the announced size of every chunk, so all of them are checked.
    """
    place = 8
    while place < len(content) and content[place + 4 : place + 8] != b"IEND":
        (length,) = struct.unpack_from(">I", content, place)
        place += 12 + length
        if place > len(content):
            raise ValueError("a chunk of the PNG reaches beyond its end")
    return struct.unpack_from(">II", content, 16)


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """From the frame header (ITU-T T.81, annex B)."""
    place = 2
    while (place := content.find(b"\xff", place)) >= 0:
        marker = content[place + 1] if place + 1 < len(content) else 0
        place += 1
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD9 or marker == 0x01:  # padding and what has no length
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, place + 4)
            return width, height
        (length,) = struct.unpack_from(">H", content, place + 1)
        place += 1 + length
    raise ValueError("the JPEG has no frame header")


def _webp_size(content: bytes) -> tuple[int, int]:
    """From the first chunk: lossy, lossless or extended (RFC 9649)."""
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    (width,), (height,) = struct.unpack_from("<I", content, 24), struct.unpack_from("<I", content, 26)
    return (width & 0xFFFFFF) + 1, (height >> 8) + 1


def _tiff_size(content: bytes, order: str) -> tuple[int, int]:
    """From the first directory (TIFF 6.0, section 2)."""
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    tags = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", content, place)
        (tags[tag],) = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", content, place + 8)
    return tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
