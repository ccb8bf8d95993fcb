"""SigLIP's and SigLIP 2's image and text encoders, and their contrast (Zhai et al. 2023; Tschannen et al. 2025)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.architectures.clip import block_options, encoder_blocks, text_entries
from mmjax.checkpoint.pretrained.architectures.vit import patch_embedding
from mmjax.checkpoint.pretrained.part import Architecture, Part, joint_attention, linear, norm, setting
from mmjax.checkpoint.pretrained.preprocessing import read_image_input
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.checkpoint.pretrained.tokenizer import read_tokenizer
from mmjax.data.inputs import TextInput
from mmjax.encoders.text import TextTransformer
from mmjax.encoders.vit import ViT
from mmjax.heads.contrast import Contrast
from mmjax.layers.pool import Pool

USUAL = "gelu_pytorch_tanh"


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Image and text encoders with their pooling heads, and a sigmoid contrast of these."""
    vision = {"model_type": "siglip", **setting(config, "vision_config", dict)}
    text = {"model_type": "siglip", **setting(config, "text_config", dict)}
    contrast = Contrast(first="image", second="text", kind="siglip", pooling="encoder")
    of_contrast = (
        Entry("logit_scale", "temperature", "1 -> "),
        Entry("logit_bias", "bias", "1 -> "),
    )
    parts = {"image": _image(vision, folder), "text": _text(text, folder)}
    return Architecture(parts, outputs={"contrast": (contrast, of_contrast)}, ignored=("*.position_ids",))


def _image(config: Mapping[str, Any], folder: Path) -> Part:
    patch, channels = setting(config, "patch_size", int, 16), setting(config, "num_channels", int, 3)
    pixels = setting(config, "image_size", int, 224)
    input = read_image_input(folder, pixels, channels)
    encoder = ViT(
        width=setting(config, "hidden_size", int, 768),
        depth=setting(config, "num_hidden_layers", int, 12),
        heads=setting(config, "num_attention_heads", int, 12),
        patch=patch,
        block=block_options({"intermediate_size": 3072, **config}, USUAL),
        mean=input.mean,
        deviation=input.deviation,
        pool=Pool(kind="attention"),
    )
    model, head, grid = "vision_model", "vision_model.head", pixels // patch
    attention = "pool/attention/attention"
    entries = (
        *patch_embedding(f"{model}.embeddings.patch_embedding", patch, channels),
        Entry(
            f"{model}.embeddings.position_embedding.weight",
            "position",
            "(y x) d -> y x d",
            sizes={"y": grid, "x": grid},
            resize=True,
        ),
        *encoder_blocks(f"{model}.encoder.layers.{{l}}"),
        *norm(f"{model}.post_layernorm", "norm"),
        Entry(f"{head}.probe", "pool/attention/probe", "a n d -> (a n) d", sizes={"a": 1}),
        *joint_attention(f"{head}.attention.in_proj_weight", f"{head}.attention.in_proj_bias", attention),
        *linear(f"{head}.attention.out_proj", f"{attention}/out", "d (h k) -> h k d"),
        *norm(f"{head}.layernorm", "pool/attention/norm"),
        *linear(f"{head}.mlp.fc1", "pool/attention/mlp/up"),
        *linear(f"{head}.mlp.fc2", "pool/attention/mlp/down"),
    )
    return Part(encoder, input.config, entries)


def _text(config: Mapping[str, Any], folder: Path) -> Part:
    tokenizer = read_tokenizer(folder, setting(config, "vocab_size", int, 32000))
    width = setting(config, "hidden_size", int, 768)
    encoder = TextTransformer(
        width=width,
        depth=setting(config, "num_hidden_layers", int, 12),
        heads=setting(config, "num_attention_heads", int, 12),
        block=block_options({"intermediate_size": 3072, **config}, USUAL),
        pool=Pool(kind="last", size=setting(config, "projection_size", int, width), bias=True),
        attend_padding=True,
    )
    entries = (*text_entries(tokenizer), *linear("text_model.head", "pool/projection"))
    length = setting(config, "max_position_embeddings", int, 64)
    return Part(encoder, TextInput(length=length, tokenizer=tokenizer), entries)
