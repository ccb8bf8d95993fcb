"""Llama, and the decoders that are built as it is: Mistral and Qwen2 (Touvron et al. 2023; Jiang et al. 2023)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.architectures.gpt2 import BLOCKS, logits
from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.checkpoint.pretrained.tokenizer import read_tokenizer
from mmjax.data.inputs import TextInput
from mmjax.errors import UserError
from mmjax.generators.text import TextDecoder
from mmjax.layers.block_options import BlockOptions


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """The language model, with a gated cross-attention that is not in its weights."""
    width, heads = setting(config, "hidden_size", int), setting(config, "num_attention_heads", int)
    length = setting(config, "max_position_embeddings", int)
    _check(config, width, heads, length)
    tokenizer = read_tokenizer(folder, setting(config, "vocab_size", int), writes=True)
    tied = setting(config, "tie_word_embeddings", bool, False)
    bias, qkv_bias = setting(config, "attention_bias", bool, False), config["model_type"] == "qwen2"
    decoder = TextDecoder(
        target="text",
        width=width,
        depth=setting(config, "num_hidden_layers", int),
        heads=heads,
        block=BlockOptions(
            epsilon=setting(config, "rms_norm_eps", float, 1e-6),
            bias=bias,
            qkv_bias=qkv_bias,
            activation=activation({"hidden_act": "silu", **config}),
            gated=True,
            hidden=setting(config, "intermediate_size", int),
            kv_heads=setting(config, "num_key_value_heads", int, heads),
            rope=float(setting(_rope(config), "rope_theta", float, 10000.0)),
        ),
        gated=True,
        tied=tied,
    )
    layer, names = "layers.{l}", ("q_proj", "k_proj", "v_proj", "o_proj")
    own = attention(f"{layer}.self_attn", f"{BLOCKS}/own", names, bias or qkv_bias)
    entries = (
        Entry("embed_tokens.weight", "embed/table", order=tokenizer.order),
        *norm(f"{layer}.input_layernorm", f"{BLOCKS}/own_norm", bias=False),
        *(entry for entry in own if bias or not entry.theirs.endswith("o_proj.bias")),
        *norm(f"{layer}.post_attention_layernorm", f"{BLOCKS}/mlp_norm", bias=False),
        *linear(f"{layer}.mlp.gate_proj", f"{BLOCKS}/mlp/gate", bias=bias),
        *linear(f"{layer}.mlp.up_proj", f"{BLOCKS}/mlp/up", bias=bias),
        *linear(f"{layer}.mlp.down_proj", f"{BLOCKS}/mlp/down", bias=bias),
        *norm("norm", "decoder/norm", bias=False),
        *logits(tied, tokenizer.order),
    )
    input = TextInput(length=length, tokenizer=tokenizer)
    ignored = ("*.rotary_emb.inv_freq", *(("lm_head.weight",) if tied else ()))
    return Architecture({"text": Part(decoder, input, entries)}, prefix="model.", ignored=ignored)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary positions, which older files have beside all others."""
    return {**config, **setting(config, "rope_scaling", dict, {}), **setting(config, "rope_parameters", dict, {})}


def _check(config: Mapping[str, Any], width: int, heads: int, length: int) -> None:
    """Raises UserError for what a `TextDecoder` does not have."""
    if setting(config, "head_dim", int, width // heads) * heads != width:
        raise UserError(
            f"head_dim={config.get('head_dim')} in config.json is not read: it must be hidden_size={width} / "
            f"num_attention_heads={heads}"
        )
    if setting(config, "attention_bias", bool, False) != setting(config, "mlp_bias", bool, False):
        raise UserError("attention_bias and mlp_bias in config.json differ; only both or none are read")
    rope = _rope(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or setting(rope, "partial_rotary_factor", float, 1.0) != 1:
        raise UserError(
            f"rotary positions of rope_type={kind} in config.json are not read; only default, of whole heads"
        )
    slides = config["model_type"] != "qwen2" or setting(config, "use_sliding_window", bool, False)
    window = setting(config, "sliding_window", int, length) if slides else length
    if window < length:
        raise UserError(
            f"sliding_window={window} in config.json is not read: it is shorter than max_position_embeddings={length}"
        )
