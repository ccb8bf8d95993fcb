"""What a pretrained model consists of: encoders and decoders of ours, their inputs, and where their tensors are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.checkpoint.pretrained.tensor_map import Entry
from mmjax.data.inputs import Input
from mmjax.encoders import Encoder
from mmjax.errors import UserError
from mmjax.layers.block_options import Activation
from mmjax.layers.output import Output


@dataclasses.dataclass(frozen=True)
class Part:
    """An encoder or decoder of a pretrained model.

    Attributes:
        config: what builds the same module here.
        input: the settings that turn raw values into what the model was trained on.
        entries: by which tensors its parameters are made, with paths below the module.
    """

    config: Encoder | Output
    input: Input
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The parts of a pretrained model by modality, and which of its tensors nothing here needs.

    Attributes:
        parts: by modality, such as "image" and "text".
        prefix: what the names begin with where the model was saved with a task's head.
        ignored: patterns of names, as `fnmatch` reads them, of tensors that have no place here.
        outputs: what else the model has, such as the contrast of an image and its text, and its entries.
    """

    parts: Mapping[str, Part]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[Output, tuple[Entry, ...]]] = dataclasses.field(default_factory=dict)


# What config.json calls an activation, and its name here.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


def setting(config: Mapping[str, Any], name: str, kind: type, default: Any = dataclasses.MISSING) -> Any:
    """A setting of a config.json. Raises UserError where it is missing or of another type."""
    value = config.get(name)
    if value is None:
        if default is dataclasses.MISSING:
            raise UserError(f"config.json lacks {name}, which an architecture {config.get('model_type')} has")
        return default
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"{name}={value!r} in config.json must be of type {kind.__name__}")
    return value


def activation(config: Mapping[str, Any], name: str = "hidden_act") -> Activation:
    """The MLP's activation by our name. Raises UserError where there is none for it."""
    theirs = setting(config, name, str, "gelu")
    if theirs not in ACTIVATIONS:
        raise UserError(f"{name}={theirs} in config.json is not known here; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def linear(theirs: str, ours: str, pattern: str = "o i -> i o", bias: bool = True) -> tuple[Entry, ...]:
    """The entries of a PyTorch linear layer: its weight, and its bias unless it has none."""
    entries = (Entry(f"{theirs}.weight", f"{ours}/kernel", pattern),)
    return (*entries, Entry(f"{theirs}.bias", f"{ours}/bias", _bias(pattern))) if bias else entries


def norm(theirs: str, ours: str, bias: bool = True) -> tuple[Entry, ...]:
    """The entries of a LayerNorm, or of an RMSNorm without bias."""
    gain = Entry(f"{theirs}.weight", f"{ours}/gain")
    return (gain, Entry(f"{theirs}.bias", f"{ours}/bias")) if bias else (gain,)


def attention(
    theirs: str, ours: str, names: tuple[str, str, str, str], bias: bool = True, key_bias: bool = True
) -> tuple[Entry, ...]:
    """The entries of attention whose query, key, value and output projections have these names below `theirs`."""
    query, key, value, out = names
    entries: tuple[Entry, ...] = ()
    for name, own, biased in ((query, "query", bias), (key, "key", bias and key_bias), (value, "value", bias)):
        entries += linear(f"{theirs}.{name}", f"{ours}/{own}", "(h k) d -> d h k", biased)
    return entries + linear(f"{theirs}.{out}", f"{ours}/out", "d (h k) -> h k d", bias)


def joint_attention(weight: str, bias: str, ours: str, pattern: str = "(s h k) d -> d h k") -> tuple[Entry, ...]:
    """The entries of query, key and value that are one tensor there, and of their biases."""
    entries: tuple[Entry, ...] = ()
    for place, name in enumerate(("query", "key", "value")):
        part = (place, 3)
        entries += (
            Entry(weight, f"{ours}/{name}/kernel", pattern, part=part),
            Entry(bias, f"{ours}/{name}/bias", "(s h k) -> h k", part=part),
        )
    return entries


def _bias(pattern: str) -> str | None:
    """The pattern of a bias, from that of the weight, whose first dimension it has."""
    first = pattern.split("->")[0].strip()
    outputs = first[: first.index(")") + 1] if first.startswith("(") else first.split()[0]
    names = outputs.strip("()").split()
    return f"{outputs} -> {' '.join(names)}" if len(names) > 1 else None
