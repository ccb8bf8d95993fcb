"""The architectures whose weights can be read, by the model_type of their config.json."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.architectures import bert, clip, gpt2, llama, siglip, vit, wav2vec2, whisper
from mmjax.checkpoint.pretrained.part import Architecture
from mmjax.errors import UserError

READERS: dict[str, Callable[[Mapping[str, Any], Path], Architecture]] = {
    "bert": bert.read,
    "clip": clip.read,
    "dinov2": vit.read_dinov2,
    "dinov2_with_registers": vit.read_dinov2,
    "gpt2": gpt2.read,
    "llama": llama.read,
    "mistral": llama.read,
    "qwen2": llama.read,
    "siglip": siglip.read,
    "siglip_text_model": siglip.read,
    "siglip_vision_model": siglip.read,
    "vit": vit.read,
    "wav2vec2": wav2vec2.read,
    "whisper": whisper.read,
}


def read_architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    """The architecture that a config.json describes. Raises UserError for one that is not known."""
    kind = config.get("model_type")
    if kind not in READERS:
        raise UserError(
            f"{folder / 'config.json'} is of an architecture {kind!r}; known are {', '.join(sorted(READERS))}"
        )
    return READERS[kind](config, folder)
