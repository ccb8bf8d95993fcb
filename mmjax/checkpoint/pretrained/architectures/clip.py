"""CLIP's image and text encoders, and their contrast (Radford et al. 2021)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.architectures.vit import class_token_positions, patch_embedding
from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.preprocessing import read_image_input
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.checkpoint.pretrained.tokenizer import read_tokenizer
from mmjax.data.inputs import TextInput
from mmjax.data.pretrained_tokenizer import PretrainedTokenizer
from mmjax.encoders.text import TextTransformer
from mmjax.encoders.vit import ViT
from mmjax.heads.contrast import Contrast
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.pool import Pool

BLOCKS = "stack/blocks"


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Image and text encoders with their projections as summaries, and an InfoNCE contrast of these."""
    size = setting(config, "projection_dim", int)
    vision = {"model_type": "clip", **setting(config, "vision_config", dict)}
    text = {"model_type": "clip", **setting(config, "text_config", dict)}
    contrast = Contrast(first="image", second="text", kind="infonce", pooling="encoder")
    image, words = _image(vision, folder, size), _text(text, folder, size)
    outputs = {"contrast": (contrast, (Entry("logit_scale", "temperature"),))}
    return Architecture({"image": image, "text": words}, outputs=outputs, ignored=("*.position_ids",))


def encoder_blocks(layer: str) -> tuple[Entry, ...]:
    """The entries of the transformer blocks of CLIP and SigLIP."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        *norm(f"{layer}.layer_norm1", f"{BLOCKS}/attention_norm"),
        *attention(f"{layer}.self_attn", f"{BLOCKS}/attention", names),
        *norm(f"{layer}.layer_norm2", f"{BLOCKS}/mlp_norm"),
        *linear(f"{layer}.mlp.fc1", f"{BLOCKS}/mlp/up"),
        *linear(f"{layer}.mlp.fc2", f"{BLOCKS}/mlp/down"),
    )


def text_entries(tokenizer: PretrainedTokenizer) -> tuple[Entry, ...]:
    """The entries of the text encoder of CLIP and SigLIP, without its projection."""
    model = "text_model"
    return (
        Entry(f"{model}.embeddings.token_embedding.weight", "embed/table", order=tokenizer.order),
        Entry(f"{model}.embeddings.position_embedding.weight", "position", truncate=True),
        *encoder_blocks(f"{model}.encoder.layers.{{l}}"),
        *norm(f"{model}.final_layer_norm", "norm"),
    )


def block_options(config: Mapping[str, Any], usual: str, **others: Any) -> BlockOptions:
    """The options of the blocks of CLIP and SigLIP; `usual` is the activation where none is named."""
    return BlockOptions(
        norm="layer",
        epsilon=setting(config, "layer_norm_eps", float, 1e-5 if usual == "quick_gelu" else 1e-6),
        bias=True,
        activation=activation({"hidden_act": usual, **config}),
        hidden=setting(config, "intermediate_size", int),
        **others,
    )


def _image(config: Mapping[str, Any], folder: Path, size: int) -> Part:
    patch, channels = setting(config, "patch_size", int, 32), setting(config, "num_channels", int, 3)
    pixels = setting(config, "image_size", int, 224)
    input = read_image_input(folder, pixels, channels)
    encoder = ViT(
        width=setting(config, "hidden_size", int),
        depth=setting(config, "num_hidden_layers", int),
        heads=setting(config, "num_attention_heads", int),
        patch=patch,
        block=block_options(config, "quick_gelu"),
        mean=input.mean,
        deviation=input.deviation,
        patch_bias=False,
        embed_norm=True,
        class_token=True,
        pool=Pool(kind="first", size=size),
    )
    model = "vision_model"
    entries = (
        *patch_embedding(f"{model}.embeddings.patch_embedding", patch, channels, bias=False),
        *class_token_positions(
            f"{model}.embeddings.class_embedding", f"{model}.embeddings.position_embedding.weight", pixels // patch
        ),
        *norm(f"{model}.pre_layrnorm", "embed_norm"),
        *encoder_blocks(f"{model}.encoder.layers.{{l}}"),
        *norm(f"{model}.post_layernorm", "norm"),
        *linear("visual_projection", "pool/projection", bias=False),
    )
    return Part(encoder, input.config, entries)


def _text(config: Mapping[str, Any], folder: Path, size: int) -> Part:
    tokenizer = read_tokenizer(folder, setting(config, "vocab_size", int, 49408))
    encoder = TextTransformer(
        width=setting(config, "hidden_size", int),
        depth=setting(config, "num_hidden_layers", int),
        heads=setting(config, "num_attention_heads", int),
        block=block_options(config, "quick_gelu", causal=True),
        pool=Pool(kind="last", size=size),
    )
    entries = (*text_entries(tokenizer), *linear("text_projection", "pool/projection", bias=False))
    length = setting(config, "max_position_embeddings", int, 77)
    return Part(encoder, TextInput(length=length, tokenizer=tokenizer), entries)
