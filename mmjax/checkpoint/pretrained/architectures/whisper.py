"""Whisper's encoder (Radford et al. 2023)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.part import Architecture, Part, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.preprocessing import read_whisper_input
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.encoders.audio import AudioTransformer
from mmjax.errors import UserError
from mmjax.layers.block_options import BlockOptions

BLOCKS = "stack/blocks"
IGNORED = ("decoder.*", "proj_out.*", "projector.*", "classifier.*", "layer_weights")


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Whisper's encoder; its decoder is left out."""
    if (theirs := setting(config, "activation_function", str, "gelu")) != "gelu":
        raise UserError(f"activation_function={theirs} in config.json must be gelu, which the convolutions have")
    bands, positions = setting(config, "num_mel_bins", int, 80), setting(config, "max_source_positions", int, 1500)
    encoder = AudioTransformer(
        width=setting(config, "d_model", int),
        kernel=3,
        first_stride=1,
        depth=setting(config, "encoder_layers", int),
        heads=setting(config, "encoder_attention_heads", int),
        block=BlockOptions(
            norm="layer",
            epsilon=1e-5,
            bias=True,
            key_bias=False,
            activation="gelu_exact",
            hidden=setting(config, "encoder_ffn_dim", int),
        ),
    )
    layer, names = "encoder.layers.{l}", ("q_proj", "k_proj", "v_proj", "out_proj")
    entries = (
        *linear("encoder.conv1", "convolutions/0", "o i k -> k i o"),
        *linear("encoder.conv2", "convolutions/1", "o i k -> k i o"),
        Entry("encoder.embed_positions.weight", "position", truncate=True),
        *norm(f"{layer}.self_attn_layer_norm", f"{BLOCKS}/attention_norm"),
        *attention(f"{layer}.self_attn", f"{BLOCKS}/attention", names, key_bias=False),
        *norm(f"{layer}.final_layer_norm", f"{BLOCKS}/mlp_norm"),
        *linear(f"{layer}.fc1", f"{BLOCKS}/mlp/up"),
        *linear(f"{layer}.fc2", f"{BLOCKS}/mlp/down"),
        *norm("encoder.layer_norm", "norm"),
    )
    audio = Part(encoder, read_whisper_input(folder, bands, 2 * positions), entries)
    return Architecture({"audio": audio}, prefix="model.", ignored=IGNORED)
