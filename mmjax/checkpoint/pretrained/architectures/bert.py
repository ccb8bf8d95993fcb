"""BERT and the sentence encoders that are built as it is, such as MiniLM (Devlin et al. 2019; Wang et al. 2020)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.checkpoint.pretrained.tokenizer import read_tokenizer
from mmjax.data.inputs import TextInput
from mmjax.encoders.text import TextTransformer
from mmjax.errors import UserError
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.pool import Pool


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """BERT's encoder with the mean of the tokens as summary, as sentence encoders have it."""
    if setting(config, "position_embedding_type", str, "absolute") != "absolute":
        raise UserError("position_embedding_type in config.json must be absolute")
    width, heads = setting(config, "hidden_size", int), setting(config, "num_attention_heads", int)
    block = BlockOptions(
        norm="layer",
        epsilon=setting(config, "layer_norm_eps", float, 1e-12),
        post_norm=True,
        bias=True,
        activation=activation(config),
        hidden=setting(config, "intermediate_size", int),
    )
    encoder = TextTransformer(
        width=width,
        depth=setting(config, "num_hidden_layers", int),
        heads=heads,
        block=block,
        pool=Pool(kind="mean"),
    )
    tokenizer = read_tokenizer(folder, setting(config, "vocab_size", int))
    length = setting(config, "max_position_embeddings", int)
    layer, ours = "encoder.layer.{l}", "stack/blocks"
    names = ("self.query", "self.key", "self.value", "output.dense")
    kinds = Entry(
        "embeddings.token_type_embeddings.weight",
        "position",
        "o d -> (o d)",
        rows=(0, 1),
        broadcast=True,
        sizes={"o": 1},
    )
    entries = (
        Entry("embeddings.word_embeddings.weight", "embed/table", order=tokenizer.order),
        Entry("embeddings.position_embeddings.weight", "position", truncate=True, plus=kinds),
        *norm("embeddings.LayerNorm", "norm"),
        *attention(f"{layer}.attention", f"{ours}/attention", names),
        *norm(f"{layer}.attention.output.LayerNorm", f"{ours}/attention_norm"),
        *linear(f"{layer}.intermediate.dense", f"{ours}/mlp/up"),
        *linear(f"{layer}.output.dense", f"{ours}/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", f"{ours}/mlp_norm"),
    )
    text = Part(encoder, TextInput(length=length, tokenizer=tokenizer), entries)
    return Architecture({"text": text}, prefix="bert.", ignored=("pooler.*", "cls.*", "*.position_ids", "classifier.*"))
