"""Kinds of files by suffix, and reading files that a manifest names without leaving their folder."""

import os
from pathlib import Path

from mmjax.buckets import below, is_remote
from mmjax.data.sources.base import Unreadable
from mmjax.files import read_regular

IMAGE = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
TEXT = (".txt", ".text", ".caption")
FIELDS = dict.fromkeys(IMAGE, "image") | dict.fromkeys(AUDIO, "audio") | dict.fromkeys(TEXT, "text")
LARGEST_FILE = 2**29  # bytes of one picture or recording


def is_media(value: object) -> bool:
    """Whether a value is the name of a picture's or a recording's file."""
    return isinstance(value, str) and value.lower().endswith(IMAGE + AUDIO)


def read_below(root: Path, name: str) -> bytes | Unreadable:
    """The content of the file that `name`, relative to `root` or absolute, names, if it lies below `root`."""
    path = below(root, name) if is_remote(root) else Path(os.path.realpath(root / name))
    if path is None or not path.is_relative_to(root):
        return Unreadable(f"{name} leads out of {root}; set root to the folder that all files lie in")
    try:
        return read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        return Unreadable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
