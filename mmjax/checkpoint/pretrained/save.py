"""Writing a contrastive model in Hugging Face's layout, so that `transformers` loads it as CLIP or SigLIP."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import chz
import jax
import numpy as np
from safetensors.numpy import save_file

from mmjax.checkpoint.pretrained.architectures import read_architecture
from mmjax.checkpoint.pretrained.part import ACTIVATIONS
from mmjax.checkpoint.pretrained.safetensors_folder import CONFIG, WEIGHTS
from mmjax.checkpoint.pretrained.tensor_map import Entry, Pieces, join_pieces
from mmjax.data.inputs import ImageInput, Input, TextInput
from mmjax.data.pretrained_tokenizer import PretrainedTokenizer
from mmjax.data.tokenize import SPECIAL, Bpe
from mmjax.encoders import Encoder
from mmjax.encoders.base import ProjectedEncoder
from mmjax.encoders.text import TextTransformer
from mmjax.encoders.vit import ViT
from mmjax.errors import UserError
from mmjax.files import local_path
from mmjax.heads.contrast import Contrast
from mmjax.layers.tree import named_leaves
from mmjax.model import Model, Multimodal


def save_pretrained(model: Multimodal, config: Model, inputs: Mapping[str, Input], out: str | Path) -> None:
    """Writes the image and text encoders of a model, and their contrast, as a CLIP or SigLIP model.

    The folder gets config.json, model.safetensors, preprocessor_config.json and the tokenizer.

    Args:
        model: the model.
        config: its configuration.
        inputs: the run's inputs, with their tokenizers, by modality.
        out: the folder, which must not exist.

    Raises:
        UserError: the model is not built as one of them, or the folder exists.
    """
    out = local_path(out)
    if out.exists():
        raise UserError(f"{out} exists; choose another folder")
    name, contrast = _find_contrast(config)
    names = {"image": contrast.first, "text": contrast.second}
    if not isinstance(inputs.get(names["image"]), ImageInput):
        names = {"image": contrast.second, "text": contrast.first}
    image, text = (inputs.get(names[kind]) for kind in ("image", "text"))
    vision, words = (config.encoders.get(names[kind]) for kind in ("image", "text"))
    if not (isinstance(image, ImageInput) and isinstance(text, TextInput)):
        raise UserError(f"outputs.{name} compares {contrast.first} and {contrast.second}, not an image and a text")
    if not (isinstance(vision, ViT) and isinstance(words, TextTransformer)):
        raise UserError("only ViT and TextTransformer can be written in Hugging Face's layout")
    vision, words = _by_channel(_complete(vision, config.width), image.channels), _complete(words, config.width)
    kind = "siglip" if words.attend_padding else "clip"
    described = (_clip if kind == "clip" else _siglip)(vision, words, image, text)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_json(folder / CONFIG, described)
        _write_json(folder / "preprocessor_config.json", _preprocessing(image, vision, kind))
        _write_tokenizer(folder, text, kind)
        architecture = read_architecture(described, folder)
        for part, own in (("image", vision), ("text", words)):
            _check_same(names[part], own, architecture.parts[part].config)
        leaves = dict(named_leaves(model))
        tensors: Pieces = Pieces(dict)
        for part in ("image", "text"):
            module = model.encoders[names[part]]
            below = f"encoders/{names[part]}/{'encoder/' if isinstance(module, ProjectedEncoder) else ''}"
            _add(tensors, architecture.parts[part].entries, leaves, below)
        _add(tensors, architecture.outputs["contrast"][1], leaves, f"outputs/{name}/")
        save_file(join_pieces(tensors), folder / WEIGHTS, metadata={"format": "pt"})
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_contrast(config: Model) -> tuple[str, Contrast]:
    for name, output in config.outputs.items():
        if isinstance(output, Contrast) and output.pooling == "encoder":
            return name, output
    raise UserError(
        "the model has no Contrast with pooling=encoder, as CLIP and SigLIP have; it cannot be written in their layout"
    )


def _add(tensors: Pieces, entries: tuple[Entry, ...], leaves: Mapping[str, Any], below: str) -> None:
    for entry in entries:
        entry.write(np.asarray(jax.device_get(leaves[f"{below}{entry.ours}"])), tensors)


Kind = TypeVar("Kind", ViT, TextTransformer)


def _complete(encoder: Kind, width: int) -> Kind:
    """The same encoder with the widths written out that could be left out."""
    width = encoder.width or width
    block = chz.replace(encoder.block, hidden=encoder.block.hidden or 4 * width)
    return chz.replace(encoder, width=width, block=block)


def _by_channel(encoder: ViT, channels: int) -> ViT:
    """The same encoder with a mean and a deviation for every channel."""
    mean, deviation = (each if len(each) == channels else each * channels for each in (encoder.mean, encoder.deviation))
    return chz.replace(encoder, mean=mean, deviation=deviation)


def _check_same(modality: str, own: Encoder, read: Any) -> None:
    """Raises UserError unless the layout describes exactly this encoder."""
    for name in chz.chz_fields(type(own)):
        if getattr(own, name) != getattr(read, name):
            raise UserError(
                f"model.encoders.{modality}.{name}={getattr(own, name)} is not what CLIP or SigLIP have, "
                f"{getattr(read, name)}; the model cannot be written in Hugging Face's layout"
            )


def _tower(encoder: ViT | TextTransformer) -> dict[str, Any]:
    block = encoder.block
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "gelu_new"}
    return {
        "hidden_size": encoder.width,
        "intermediate_size": block.hidden,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "hidden_act": names[block.activation],
        "layer_norm_eps": block.epsilon,
    }


def _towers(
    vision: ViT, words: TextTransformer, image: ImageInput, text: TextInput
) -> tuple[dict[str, Any], dict[str, Any]]:
    if image.width not in (None, image.size):
        raise UserError(f"pictures of {image.size} x {image.width} cannot be written: they must be square")
    tokenizer = text.tokenizer
    pictures = {"image_size": image.size, "patch_size": vision.patch, "num_channels": image.channels}
    vocabulary = tokenizer.vocabulary if isinstance(tokenizer, PretrainedTokenizer | Bpe) else tokenizer.size
    texts = {"vocab_size": vocabulary, "max_position_embeddings": text.length, **_special_ids(text)}
    return _tower(vision) | pictures, _tower(words) | texts


def _clip(vision: ViT, words: TextTransformer, image: ImageInput, text: TextInput) -> dict[str, Any]:
    size = None if vision.pool is None else vision.pool.size
    pictures, texts = _towers(vision, words, image, text)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": size or vision.width,
        "vision_config": pictures | {"model_type": "clip_vision_model", "projection_dim": size},
        "text_config": texts | {"model_type": "clip_text_model", "projection_dim": size},
    }


def _siglip(vision: ViT, words: TextTransformer, image: ImageInput, text: TextInput) -> dict[str, Any]:
    pictures, texts = _towers(vision, words, image, text)
    size = None if words.pool is None else words.pool.size
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "vision_config": pictures | {"model_type": "siglip_vision_model"},
        "text_config": texts | {"model_type": "siglip_text_model", "projection_size": size},
    }


def _special_ids(text: TextInput) -> dict[str, int]:
    tokenizer = text.tokenizer
    order = tokenizer.order if isinstance(tokenizer, PretrainedTokenizer) else range(2)
    padding, end = order[0], order[1]
    return {"pad_token_id": padding, "eos_token_id": end, "bos_token_id": end}


def _preprocessing(image: ImageInput, vision: ViT, kind: str) -> dict[str, Any]:
    side = {"height": image.size, "width": image.size}
    size = side if image.shorter_side is None else {"shortest_edge": image.shorter_side}
    return {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "do_resize": True,
        "size": size,
        "do_center_crop": image.shorter_side is not None,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.deviation),
        "resample": 3,
    }


def _write_tokenizer(folder: Path, text: TextInput, kind: str) -> None:
    """tokenizer.json and what its special tokens are."""
    tokenizer = text.tokenizer
    if isinstance(tokenizer, PretrainedTokenizer):
        padding, end = tokenizer.padding or tokenizer.end, tokenizer.end
        shutil.copyfile(tokenizer.file, folder / "tokenizer.json")
    elif isinstance(tokenizer, Bpe) and tokenizer.file is not None:
        from tokenizers import Tokenizer, processors

        padding, end = SPECIAL
        trained = Tokenizer.from_file(tokenizer.file)
        trained.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
        trained.save(str(folder / "tokenizer.json"))
    else:
        raise UserError(f"a tokenizer {type(tokenizer).__name__} has no tokenizer.json; train with Bpe to write one")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": padding, "eos_token": end}
    _write_json(folder / "tokenizer_config.json", settings | {"model_max_length": text.length})


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
