"""Reading the tokenizer that lies beside pretrained weights."""

from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.safetensors_folder import read_json_file
from mmjax.data.pretrained_tokenizer import PretrainedTokenizer
from mmjax.errors import UserError

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def read_tokenizer(folder: Path, vocabulary: int, *, writes: bool = False) -> PretrainedTokenizer:
    """The tokenizer of a folder for a model of that many ids.

    With `writes` it is a decoder's, whose padding is the token with which a text starts. Raises UserError where there
    is none, or it does not fit the vocabulary.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}; save the model's fast tokenizer there")
    settings = read_json_file(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    end = _token(settings, "eos_token") if writes else _token(settings, "sep_token") or _token(settings, "eos_token")
    if end is None:
        raise UserError(f"{folder / SETTINGS} names no {'eos_token' if writes else 'sep_token or eos_token'}")
    padding = _token(settings, "bos_token" if writes else "pad_token")
    tokenizer = PretrainedTokenizer(
        file=str(folder / FILE), vocabulary=vocabulary, end=end, padding=padding, copy_padding=writes
    )
    tokenizer.encode("")
    return tokenizer


def _token(settings: dict[str, Any], name: str) -> str | None:
    token = settings.get(name)
    return token.get("content") if isinstance(token, dict) else token
