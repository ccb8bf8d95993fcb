"""Reading how pictures and recordings are prepared for pretrained weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.safetensors_folder import read_json_file
from mmjax.data.audio_inputs import WaveformInput
from mmjax.data.inputs import ImageInput
from mmjax.data.whisper_input import WhisperInput
from mmjax.errors import UserError
from mmjax.layers.spectrogram import WHISPER_HOP, WHISPER_RATE, WHISPER_WINDOW

FILE = "preprocessor_config.json"
SECONDS = 15.6  # of recordings, what wav2vec 2.0 was trained on: its length is not limited


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The input of a pretrained image encoder, and what the encoder does with its pixels in [0, 1]."""

    config: ImageInput
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def read_image_input(folder: Path, size: int, channels: int) -> ImageSettings:
    """The settings in preprocessor_config.json; without one, pixels are mapped to [-1, 1] and pictures resized.

    The model's `size`, in pixels, is what comes out. Raises UserError where the file says something else.
    """
    found = read_json_file(folder / FILE) if (folder / FILE).is_file() else {}
    mean, deviation = (_numbers(found, name, channels) for name in ("image_mean", "image_std"))
    shorter = None
    if found.get("do_center_crop"):
        resized = found.get("size", size)
        shorter = resized.get("shortest_edge", size) if isinstance(resized, Mapping) else resized
        if not isinstance(shorter, int) or shorter < size:
            raise UserError(f"{folder / FILE} resizes pictures to {resized}, less than the model's {size} pixels")
    return ImageSettings(ImageInput(size=size, channels=channels, shorter_side=shorter), mean, deviation)


def read_whisper_input(folder: Path, bands: int, frames: int) -> WhisperInput:
    """The input of a model that reads so many frames, at most, of so many mel bands.

    Raises UserError where preprocessor_config.json says something else.
    """
    found = read_json_file(folder / FILE) if (folder / FILE).is_file() else {}
    wanted = {
        "feature_size": bands,
        "sampling_rate": WHISPER_RATE,
        "n_fft": WHISPER_WINDOW,
        "hop_length": WHISPER_HOP,
    }
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise UserError(f"{name}={found[name]} in {folder / FILE} must be {value}, which the model was trained on")
    longest = frames * WHISPER_HOP / WHISPER_RATE
    seconds = found.get("chunk_length", longest)
    if not isinstance(seconds, int | float) or not 0 < seconds <= longest:
        raise UserError(f"chunk_length={seconds} in {folder / FILE} must be at most the model's {longest} seconds")
    return WhisperInput(seconds=float(seconds), bands=bands)


def read_waveform_input(folder: Path) -> WaveformInput:
    """The rate and normalisation in preprocessor_config.json; without one, 16 kHz, and mean 0 and variance 1."""
    found = read_json_file(folder / FILE) if (folder / FILE).is_file() else {}
    rate, normalize = found.get("sampling_rate", 16_000), found.get("do_normalize", True)
    if not isinstance(rate, int) or rate < 1 or not isinstance(normalize, bool):
        raise UserError(f"{folder / FILE} has no usable sampling_rate and do_normalize")
    return WaveformInput(rate=rate, seconds=SECONDS, normalize="standard" if normalize else "none")


def _numbers(found: Mapping[str, Any], name: str, channels: int) -> tuple[float, ...]:
    values = found.get(name) or [0.5]
    if not isinstance(values, list) or not all(isinstance(value, float | int) for value in values):
        raise UserError(f"{name} in {FILE} must be a list of numbers")
    if len(values) not in (1, channels):
        raise UserError(f"{name} in {FILE} has {len(values)} numbers for {channels} channels")
    return tuple(float(value) for value in values)
