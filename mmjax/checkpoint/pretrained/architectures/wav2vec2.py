"""wav2vec 2.0 (Baevski et al. 2020)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.preprocessing import read_waveform_input
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.encoders.waveform import WaveformTransformer
from mmjax.errors import UserError
from mmjax.layers.block_options import BlockOptions

BLOCKS = "stack/blocks"
IGNORED = (
    *("masked_spec_embed", "quantizer.*", "project_q.*", "project_hid.*"),  # of the pretraining
    *("lm_head.*", "projector.*", "classifier.*", "layer_weights"),
)
# The convolutions of all published models, where config.json does not name them.
KERNELS, STRIDES, CHANNELS = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), (512,) * 7


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """wav2vec 2.0 with a norm on the first convolution and post-norm, or on all convolutions and pre-norm."""
    for name in ("add_adapter", "adapter_attn_dim"):
        if config.get(name):
            raise UserError(f"{name}={config[name]} in config.json: wav2vec 2.0 with adapters is not read")
    act, conv_act = activation(config), activation(config, "feat_extract_activation")
    if act != conv_act:
        raise UserError("hidden_act and feat_extract_activation in config.json must be the same")
    kind = setting(config, "feat_extract_norm", str, "group")
    if kind not in ("group", "layer"):
        raise UserError(f"feat_extract_norm={kind} in config.json must be group or layer")
    kernels, strides = _numbers(config, "conv_kernel", KERNELS), _numbers(config, "conv_stride", STRIDES)
    channels = _numbers(config, "conv_dim", CHANNELS)
    if len({*channels}) != 1 or not len(channels) == len(kernels) == len(strides):
        raise UserError("conv_dim, conv_kernel and conv_stride in config.json must be as long, and conv_dim one number")
    bias, normed = setting(config, "conv_bias", bool, False), kind == "layer"
    encoder = WaveformTransformer(
        width=setting(config, "hidden_size", int),
        channels=channels[0],
        kernels=kernels,
        strides=strides,
        conv_bias=bias,
        conv_norm=normed,
        position_kernel=setting(config, "num_conv_pos_embeddings", int, 128),
        position_groups=setting(config, "num_conv_pos_embedding_groups", int, 16),
        depth=setting(config, "num_hidden_layers", int),
        heads=setting(config, "num_attention_heads", int),
        block=BlockOptions(
            norm="layer",
            epsilon=setting(config, "layer_norm_eps", float, 1e-5),
            post_norm=not setting(config, "do_stable_layer_norm", bool, False),
            bias=True,
            activation=act,
            hidden=setting(config, "intermediate_size", int),
        ),
    )
    entries: tuple[Entry, ...] = ()
    for place in range(len(kernels)):
        theirs = f"feature_extractor.conv_layers.{place}"
        entries += linear(f"{theirs}.conv", f"convolutions/{place}", "o i k -> k i o", bias)
        if normed or place == 0:
            entries += norm(f"{theirs}.layer_norm", f"norms/{place}")
    layer, position = "encoder.layers.{l}", "encoder.pos_conv_embed.conv"
    entries += (
        *norm("feature_projection.layer_norm", "embed_norm"),
        *linear("feature_projection.projection", "embed"),
        Entry(
            f"{position}.parametrizations.weight.original0", "position/gain", "a b k -> (a b k)", sizes={"a": 1, "b": 1}
        ),
        Entry(f"{position}.parametrizations.weight.original1", "position/direction", "o i k -> k i o"),
        Entry(f"{position}.bias", "position/bias"),
        *attention(f"{layer}.attention", f"{BLOCKS}/attention", ("q_proj", "k_proj", "v_proj", "out_proj")),
        *norm(f"{layer}.layer_norm", f"{BLOCKS}/attention_norm"),
        *linear(f"{layer}.feed_forward.intermediate_dense", f"{BLOCKS}/mlp/up"),
        *linear(f"{layer}.feed_forward.output_dense", f"{BLOCKS}/mlp/down"),
        *norm(f"{layer}.final_layer_norm", f"{BLOCKS}/mlp_norm"),
        *norm("encoder.layer_norm", "norm"),
    )
    audio = Part(encoder, read_waveform_input(folder), entries)
    return Architecture({"audio": audio}, prefix="wav2vec2.", ignored=IGNORED)


def _numbers(config: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of positive integers in config.json."""
    found = setting(config, name, list, list(default))
    if not found or not all(type(value) is int and value > 0 for value in found):
        raise UserError(f"{name} in config.json must be a list of positive integers")
    return tuple(found)
