"""Starting encoders and decoders from the weights of other projects, and writing them in their layout."""

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import chz
import jax

from mmjax.checkpoint.pretrained.architectures import read_architecture
from mmjax.checkpoint.pretrained.part import Architecture
from mmjax.checkpoint.pretrained.safetensors_folder import SafetensorsFolder, find_folder
from mmjax.checkpoint.pretrained.tensor_map import Entry, check_entries, load_entry
from mmjax.data.inputs import Input
from mmjax.encoders import Encoder
from mmjax.encoders.base import ProjectedEncoder
from mmjax.errors import UserError
from mmjax.layers.lora import is_lora
from mmjax.layers.output import Output
from mmjax.layers.tree import named_leaves

ModelTree = TypeVar("ModelTree")

CROSS_ATTENTION = tuple(
    f"outputs/*/decoder/{name}" for name in ("context_norm/*", "*/seen/*", "*/seen_norm/*", "*/gate")
)


@chz.chz
class Pretrained:
    """Weights of another project for a part of the model: a folder with safetensors and config.json."""

    path: str = chz.field(doc="the folder, or the name of a model in Hugging Face's local cache")
    into: str = chz.field(doc="the part of the model: encoders.image, outputs.caption")
    part: str | None = chz.field(
        default=None, doc="which of the weights' parts, such as image or text; None: the only one that fits"
    )
    freeze: bool = chz.field(
        default=False, doc="never change these parameters, unless one of optimizer.rules matches them"
    )


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """What is in a folder of pretrained weights, as configurations of this project.

    Attributes:
        encoders: by modality, the configuration of the same encoder.
        inputs: by modality, how raw values become what the encoder was trained on.
        outputs: what the model has beside encoders, such as the contrast of image and text.
    """

    path: str
    encoders: Mapping[str, Encoder]
    outputs: Mapping[str, Output]
    inputs: Mapping[str, Input]


def read_pretrained(path: str) -> PretrainedModel:
    """The configurations of a folder of pretrained weights, to make a model from; nothing but headers is read.

    Raises UserError where the folder is missing, its architecture is not known, or a file cannot be used.
    """
    _, architecture = _open(path)
    parts = architecture.parts
    return PretrainedModel(
        path,
        {name: part.config for name, part in parts.items() if isinstance(part.config, Encoder)},
        {name: part.config for name, part in parts.items() if isinstance(part.config, Output)}
        | {name: config for name, (config, _) in architecture.outputs.items()},
        {name: part.input for name, part in parts.items()},
    )


def check_pretrained(model: Any, config: Pretrained) -> None:
    """Raises what `import_weights` would, of a model of shapes, before anything is drawn or read."""
    _find(model, config)


def import_weights(model: ModelTree, config: Pretrained, *, say: Callable[[str], None] = print) -> ModelTree:
    """`model` with the part `config.into` from pretrained weights; `say` gets what was read.

    Every device's part of a parameter is read by itself, so that no host holds the whole of a large one.

    Raises:
        UserError: the weights are not there or of another architecture, a tensor is missing, left over or of another
            shape, or a file is truncated.
    """
    found = _find(model, config)
    parameters = dict(named_leaves(model))
    loaded = {name: load_entry(found.folder, entry, parameters[name]) for name, entry in found.entries.items()}
    rest = f", {found.drawn} stay as drawn" if found.drawn else ""
    say(f"{config.into}: {len(loaded)} parameters read from {config.path}{rest}")
    return jax.tree.unflatten(jax.tree.structure(model), [loaded.get(name, leaf) for name, leaf in parameters.items()])


def imported_parameters(model: Any, config: Pretrained) -> list[str]:
    """The path names of the parameters that `import_weights` reads; the folder is not looked at."""
    return [name for name in _below(model, config) if not _is_cross_attention(name)]


def _below(model: Any, config: Pretrained) -> list[str]:
    prefix = pretrained_prefix(model, config)
    return [name for name, _ in named_leaves(model) if name.startswith(f"{prefix}/") and not is_lora(name)]


def _is_cross_attention(name: str) -> bool:
    """Whether a parameter is of a decoder's attention to the fused tokens, which no language model has."""
    return any(fnmatchcase(name, pattern) for pattern in CROSS_ATTENTION)


def pretrained_prefix(model: Any, config: Pretrained) -> str:
    """The path of the parameters that are read, such as encoders/image; without a projection to the model's width."""
    part, prefix = model, config.into.replace(".", "/")
    for name in config.into.split("."):
        try:
            part = part[name] if name in (part if hasattr(part, "keys") else ()) else getattr(part, name)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"initialize.into={config.into} is not a part of the model; it has "
                f"{', '.join(f'encoders.{each}' for each in model.encoders)}"
                f"{''.join(f', outputs.{each}' for each in model.outputs)}"
            ) from error
    return f"{prefix}/encoder" if isinstance(part, ProjectedEncoder) else prefix


@dataclasses.dataclass(frozen=True)
class _Found:
    """The folder, the entries by path of the parameter that each gives, and how many parameters have none."""

    folder: SafetensorsFolder
    entries: Mapping[str, Entry]
    drawn: int


def _open(path: str) -> tuple[SafetensorsFolder, Architecture]:
    where = find_folder(path)
    folder = SafetensorsFolder(where)
    architecture = read_architecture(folder.config, where)
    folder.strip(architecture.prefix)
    return folder, architecture


def _find(model: Any, config: Pretrained) -> _Found:
    folder, architecture = _open(config.path)
    prefix = pretrained_prefix(model, config)
    groups = {name: part.entries for name, part in architecture.parts.items()}
    groups |= {name: entries for name, (_, entries) in architecture.outputs.items()}
    name = _choose(config, prefix, groups, architecture)
    parameters = dict(named_leaves(model))
    entries = groups[name]
    below = {path.removeprefix(f"{prefix}/"): parameters[path] for path in imported_parameters(model, config)}
    check_entries(folder, entries, below)
    depths = {entry.ours: below[entry.ours].shape for entry in entries}
    used = {each for entry in entries for each in entry.names(depths[entry.ours])}
    elsewhere = [
        entry.theirs.replace("{l}", "*") for other, others in groups.items() if other != name for entry in others
    ]
    for tensor in folder.names:
        if tensor not in used and not any(fnmatchcase(tensor, each) for each in (*architecture.ignored, *elsewhere)):
            raise UserError(f"{folder.folder} has the tensor {tensor}, which has no place in {config.into}")
    found = {f"{prefix}/{entry.ours}": entry for entry in entries}
    return _Found(folder, found, len(_below(model, config)) - len(below))


def _choose(
    config: Pretrained, prefix: str, groups: Mapping[str, tuple[Entry, ...]], architecture: Architecture
) -> str:
    if config.part is not None:
        if config.part not in groups:
            raise UserError(f"{config.path} has no part {config.part}; it has {', '.join(groups)}")
        return config.part
    kind = prefix.split("/")[0]
    fitting = [
        name
        for name in groups
        if (name in architecture.parts and isinstance(architecture.parts[name].config, Encoder)) == (kind == "encoders")
    ]
    own = [name for name in fitting if name == config.into.split(".")[-1]] or fitting
    if len(own) != 1:
        raise UserError(
            f"{config.path} has {', '.join(fitting) or 'nothing'} for {config.into}; name one by initialize.part"
        )
    return own[0]
