"""GPT-2 as a text decoder (Radford et al. 2019)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, joint_attention, norm, setting
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.checkpoint.pretrained.tokenizer import read_tokenizer
from mmjax.data.inputs import TextInput
from mmjax.errors import UserError
from mmjax.generators.text import TextDecoder
from mmjax.layers.block_options import BlockOptions

BLOCKS = "decoder/stack/blocks"


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """The language model, with a gated cross-attention that is not in its weights."""
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if setting(config, name, bool, usual) != usual:
            raise UserError(f"{name}={not usual} in config.json is not read; it must be {usual}")
    tokenizer = read_tokenizer(folder, setting(config, "vocab_size", int), writes=True)
    tied = setting(config, "tie_word_embeddings", bool, True)
    decoder = TextDecoder(
        target="text",
        width=setting(config, "n_embd", int),
        depth=setting(config, "n_layer", int),
        heads=setting(config, "n_head", int),
        block=BlockOptions(
            norm="layer",
            epsilon=setting(config, "layer_norm_epsilon", float, 1e-5),
            bias=True,
            activation=activation({"activation_function": "gelu_new", **config}, "activation_function"),
            hidden=setting(config, "n_inner", int, 4 * setting(config, "n_embd", int)),
        ),
        gated=True,
        tied=tied,
    )
    layer = "h.{l}"
    entries = (
        Entry("wte.weight", "embed/table", order=tokenizer.order),
        Entry("wpe.weight", "position", truncate=True),
        *norm(f"{layer}.ln_1", f"{BLOCKS}/own_norm"),
        *_attention(f"{layer}.attn", f"{BLOCKS}/own"),
        *norm(f"{layer}.ln_2", f"{BLOCKS}/mlp_norm"),
        *_convolution(f"{layer}.mlp.c_fc", f"{BLOCKS}/mlp/up"),
        *_convolution(f"{layer}.mlp.c_proj", f"{BLOCKS}/mlp/down"),
        *norm("ln_f", "decoder/norm"),
        *logits(tied, tokenizer.order),
    )
    input = TextInput(length=setting(config, "n_positions", int), tokenizer=tokenizer)
    ignored = ("h.*.attn.bias", "h.*.attn.masked_bias", *(("lm_head.weight",) if tied else ()))
    return Architecture({"text": Part(decoder, input, entries)}, prefix="transformer.", ignored=ignored)


def logits(tied: bool, order: tuple[int, ...]) -> tuple[Entry, ...]:
    """The entry of the projection to logits; none where these are tied to the embeddings."""
    return () if tied else (Entry("lm_head.weight", "logits/kernel", "v d -> d v", order=order),)


def _convolution(theirs: str, ours: str, pattern: str | None = None) -> tuple[Entry, ...]:
    """The entries of a linear layer whose weight is [in, out], which GPT-2 calls a convolution."""
    return Entry(f"{theirs}.weight", f"{ours}/kernel", pattern), Entry(f"{theirs}.bias", f"{ours}/bias")


def _attention(theirs: str, ours: str) -> tuple[Entry, ...]:
    """The entries of attention with query, key and value in one tensor."""
    entries = joint_attention(f"{theirs}.c_attn.weight", f"{theirs}.c_attn.bias", ours, "d (s h k) -> d h k")
    return entries + _convolution(f"{theirs}.c_proj", f"{ours}/out", "(h k) d -> h k d")
