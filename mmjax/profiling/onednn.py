"""Products in calls of oneDNN, which XLA's CPU backend can use for products and convolutions."""

import json
import math
from typing import Any

from mmjax.profiling.instruction import Instruction, kernel_overlaps

PRODUCT, CONVOLUTION = "__onednn$matmul", "__onednn$convolution"


def is_onednn_call(instruction: Instruction) -> bool:
    """Whether an instruction is a call of oneDNN."""
    target = r'custom_call_target="([^"]*)"'
    return instruction.opcode == "custom-call" and instruction.attribute(target) in (PRODUCT, CONVOLUTION)


def product_size(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> tuple[int, int, int]:
    """Rows, columns and depth of the call's matrix product; for a convolution see `convolution`."""
    settings = _settings(instruction)
    if "onednn_matmul_config" in settings:
        turned = settings["onednn_matmul_config"].get("transpose_a", False)
        return math.prod(out[:-1]), out[-1], left[-2 if turned else -1]
    conv = settings["onednn_conv_config"]
    read, kernel, made = conv["input"]["data"], conv["kernel"]["filter"], conv["output"]["data"]
    window = conv["window"]
    rows = out[int(made["batch_dim"])]
    for place, axis in enumerate(made["spatial_dims"]):
        rows *= kernel_overlaps(
            left[int(read["spatial_dims"][place])],
            right[int(kernel["spatial_dims"][place])],
            out[int(axis)],
            stride=int(window["strides"][place]),
            pad=int(window["pad_left"][place]),
            apart=int(window["window_dilations"][place]),
        )
    return rows, out[int(made["feature_dim"])], right[int(kernel["input_feature_dim"])]


def _settings(instruction: Instruction) -> dict[str, Any]:
    """The backend config of the call."""
    text = instruction.attributes.partition("backend_config=")[2]
    found: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    return found
