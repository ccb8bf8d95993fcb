"""ViT and DINOv2 (Dosovitskiy et al. 2021; Oquab et al. 2023)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.checkpoint.pretrained.part import Architecture, Part, activation, attention, linear, norm, setting
from mmjax.checkpoint.pretrained.preprocessing import read_image_input
from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.encoders.vit import ViT
from mmjax.errors import UserError
from mmjax.layers.block_options import BlockOptions
from mmjax.layers.pool import Pool

IGNORED = ("pooler.*", "classifier.*", "embeddings.mask_token", "lm_head.*")
BLOCKS = "stack/blocks"


def read(config: Mapping[str, Any], folder: Path) -> Architecture:
    """ViT with its class token as summary."""
    layer = "encoder.layer.{l}"
    bias = setting(config, "qkv_bias", bool, True)
    if not bias:
        raise UserError("qkv_bias=false in config.json: attention without biases beside an MLP with them is not read")
    names = ("attention.query", "attention.key", "attention.value", "output.dense")
    blocks = (
        *norm(f"{layer}.layernorm_before", f"{BLOCKS}/attention_norm"),
        *attention(f"{layer}.attention", f"{BLOCKS}/attention", names),
        *norm(f"{layer}.layernorm_after", f"{BLOCKS}/mlp_norm"),
        *linear(f"{layer}.intermediate.dense", f"{BLOCKS}/mlp/up"),
        *linear(f"{layer}.output.dense", f"{BLOCKS}/mlp/down"),
    )
    return _architecture(config, folder, blocks, hidden=setting(config, "intermediate_size", int), prefix="vit.")


def read_dinov2(config: Mapping[str, Any], folder: Path) -> Architecture:
    """DINOv2, with or without registers, with its class token as summary."""
    if not setting(config, "qkv_bias", bool, True):
        raise UserError("qkv_bias=false in config.json: attention without biases beside an MLP with them is not read")
    layer, width = "encoder.layer.{l}", setting(config, "hidden_size", int)
    hidden = width * setting(config, "mlp_ratio", int, 4)
    gated = setting(config, "use_swiglu_ffn", bool, False)
    if gated:
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        both, pattern = f"{layer}.mlp.weights_in", "(s o) i -> i o"
        mlp = tuple(
            entry
            for part, name in enumerate(("gate", "up"))
            for entry in (
                Entry(f"{both}.weight", f"{BLOCKS}/mlp/{name}/kernel", pattern, part=(part, 2)),
                Entry(f"{both}.bias", f"{BLOCKS}/mlp/{name}/bias", "(s o) -> o", part=(part, 2)),
            )
        ) + linear(f"{layer}.mlp.weights_out", f"{BLOCKS}/mlp/down")
    else:
        mlp = linear(f"{layer}.mlp.fc1", f"{BLOCKS}/mlp/up") + linear(f"{layer}.mlp.fc2", f"{BLOCKS}/mlp/down")
    names = ("attention.query", "attention.key", "attention.value", "output.dense")
    blocks = (
        *norm(f"{layer}.norm1", f"{BLOCKS}/attention_norm"),
        *attention(f"{layer}.attention", f"{BLOCKS}/attention", names),
        Entry(f"{layer}.layer_scale1.lambda1", f"{BLOCKS}/attention_scale"),
        *norm(f"{layer}.norm2", f"{BLOCKS}/mlp_norm"),
        *mlp,
        Entry(f"{layer}.layer_scale2.lambda1", f"{BLOCKS}/mlp_scale"),
    )
    scale = setting(config, "layerscale_value", float, 1.0)
    prefix = f"{setting(config, 'model_type', str)}."
    return _architecture(config, folder, blocks, hidden=hidden, gated=gated, layer_scale=scale, prefix=prefix)


def _architecture(
    config: Mapping[str, Any],
    folder: Path,
    blocks: tuple[Entry, ...],
    *,
    hidden: int,
    prefix: str,
    gated: bool = False,
    layer_scale: float | None = None,
) -> Architecture:
    registers = setting(config, "num_register_tokens", int, 0)
    patch, channels = setting(config, "patch_size", int), setting(config, "num_channels", int, 3)
    size = setting(config, "image_size", int)
    input, grid = read_image_input(folder, size, channels), size // patch
    options = BlockOptions(
        norm="layer",
        epsilon=setting(config, "layer_norm_eps", float, 1e-12),
        bias=True,
        activation="silu" if gated else activation(config),
        gated=gated,
        hidden=hidden,
        layer_scale=layer_scale,
    )
    encoder = ViT(
        width=setting(config, "hidden_size", int),
        depth=setting(config, "num_hidden_layers", int),
        heads=setting(config, "num_attention_heads", int),
        patch=patch,
        block=options,
        mean=input.mean,
        deviation=input.deviation,
        class_token=True,
        registers=registers,
        pool=Pool(kind="first"),
    )
    entries = (
        *patch_embedding("embeddings.patch_embeddings.projection", patch, channels),
        *class_token_positions("embeddings.cls_token", "embeddings.position_embeddings", grid, ones=1),
        *blocks,
        *norm("layernorm", "norm"),
    )
    if registers:
        entries += (Entry("embeddings.register_tokens", "registers", "a n d -> (a n) d", sizes={"a": 1}),)
    return Architecture({"image": Part(encoder, input.config, entries)}, prefix=prefix, ignored=IGNORED)


def patch_embedding(theirs: str, patch: int, channels: int, bias: bool = True) -> tuple[Entry, ...]:
    """The entries of a convolution whose windows are the patches."""
    sizes = {"p": patch, "q": patch, "c": channels}
    kernel = Entry(f"{theirs}.weight", "embed/kernel", "d c p q -> (p q c) d", sizes=sizes)
    return (kernel, Entry(f"{theirs}.bias", "embed/bias")) if bias else (kernel,)


def class_token_positions(token: str, positions: str, grid: int, ones: int = 0) -> tuple[Entry, ...]:
    """The entries of a class token and of positions, of which the first is the token's and is added to it.

    The tensors have `ones` leading dimensions of size 1: the positions [1, 1 + grid * grid, D] one, the token then two.
    """
    one, sizes = "a " if ones else "", {"a": 1, "b": 1, "y": grid, "x": grid}
    first = Entry(positions, "class_token", f"{one}n d -> ({one}n d)", rows=(0, 1), along=ones, sizes={"a": 1, "n": 1})
    return (
        Entry(token, "class_token", "a b d -> (a b d)" if ones else None, sizes=sizes, plus=first),
        Entry(
            positions,
            "position",
            f"{one}(y x) d -> ({one}y) x d",
            rows=(1, grid * grid),
            along=ones,
            sizes=sizes,
            resize=True,
        ),
    )
