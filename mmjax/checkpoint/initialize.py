"""Starting a run from the parameters of another one, whole or by path."""

import contextlib
import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import chz
import jax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from mmjax.checkpoint.exported import ExportedCheckpoint, is_export
from mmjax.checkpoint.integrity import stored_fingerprints
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.errors import UserError
from mmjax.files import to_path
from mmjax.layers.tree import named_leaves

ModelTree = TypeVar("ModelTree")

# A parameter of this name may have another shape: positions [H, W, D] and [N, D] are resized.
POSITION = "position"


@chz.chz
class Rename:
    """Renames the path `old` of the other run, a parameter or a part with all below it, to `new` here."""

    old: str = chz.field(doc="path there, such as encoders/image/trunk")
    new: str = chz.field(doc="path here")

    def __call__(self, name: str) -> str:
        """The name here of a parameter that is called `name` there."""
        return self.new + name.removeprefix(self.old) if f"{name}/".startswith(f"{self.old}/") else name


@chz.chz
class Initialize:
    """Which parameters of which run; those of this model that are not among them stay as they were drawn."""

    run_dir: str = chz.field(doc="the other run's directory, or an export of it")
    step: int | None = chz.field(default=None, doc="which of its checkpoints; None: the newest")
    average: bool = chz.field(default=False, doc="take its moving average (train.ema) of the parameters")
    include: str = chz.field(default="*", doc="path names here that are to be loaded, * for any part: encoders/image/*")
    exclude: str | None = chz.field(default=None, doc="those of them that are not: */bias")
    rename: tuple[Rename, ...] = chz.field(default=(), doc="changes of names between there and here, in order")


def check_origin(model: Any, config: Initialize) -> None:
    """Raises what `initialize` would, of a model of shapes, before anything is drawn or loaded."""
    with _open(config) as checkpoints:
        _find(checkpoints, dict(named_leaves(model)), config)


def initialize(model: ModelTree, config: Initialize, *, say: Callable[[str], None] = print) -> ModelTree:
    """`model` with the parameters that a checkpoint of another run has too; `say` gets their number.

    Position embeddings of another size are resized: grids [H, W, D] bicubically, sequences [N, D] linearly.

    Raises UserError where there is no such checkpoint, it has none of the parameters, or one of another shape.
    """
    fresh = dict(named_leaves(model))
    with _open(config, say) as checkpoints:
        found = _find(checkpoints, fresh, config)
        wanted = {
            source: jax.ShapeDtypeStruct(
                found.there[source].shape,
                found.there[source].dtype,
                sharding=None if name in found.resized else fresh[name].sharding,
            )
            for name, source in found.sources.items()
        }
        restored = checkpoints.restore(wanted, found.step, partial=True)
    assert restored is not None
    loaded = {name: _fit(restored.state[source], fresh[name]) for name, source in found.sources.items()}
    left = [name for name in fresh if name not in loaded]
    say(
        f"initialised from {found.where}: {len(loaded)} parameters loaded, {len(found.resized)} of them resized; "
        f"{len(left)} left as drawn" + (f" ({_some(left)})" if left else "")
    )
    return jax.tree.unflatten(jax.tree.structure(model), [loaded.get(name, leaf) for name, leaf in fresh.items()])


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is loaded: shapes `there` by name, names there by names here, and what is resized."""

    step: int
    where: str
    there: dict[str, Any]
    sources: dict[str, str]
    resized: list[str]


def _open(
    config: Initialize, say: Callable[[str], None] = print
) -> contextlib.closing[Checkpoints] | contextlib.closing[ExportedCheckpoint]:
    if is_export(config.run_dir):
        if config.average:
            raise UserError(
                f"initialize.run_dir={config.run_dir} is an export, with no second average; leave average out"
            )
        return contextlib.closing(ExportedCheckpoint(config.run_dir))
    run_dir = to_path(config.run_dir)
    fingerprints = stored_fingerprints(run_dir)
    return contextlib.closing(Checkpoints(run_dir, Checkpoint(), fingerprints=fingerprints, warn=say, read_only=True))


def _find(checkpoints: Checkpoints | ExportedCheckpoint, fresh: dict[str, Any], config: Initialize) -> _Found:
    step = checkpoints.find(config.step)
    if step is None:
        raise UserError(f"initialize.run_dir={config.run_dir} has no checkpoint; give the directory of a run with one")
    where = f"step {step} of {config.run_dir}"
    there = checkpoints.contents(step)
    sources = {name: source for name, source in _sources(config, there).items() if name in fresh}
    return _Found(step, where, there, sources, _check(fresh, there, sources, where))


def _check(fresh: dict[str, Any], there: dict[str, Any], sources: dict[str, str], where: str) -> list[str]:
    """The parameters to be resized. Raises UserError where nothing is loaded, or a shape does not fit."""
    if not sources:
        raise UserError(
            f"{where} has no parameter to load by the given initialize.include, exclude, rename and average "
            f"(it has {_some(list(there))}; this model has {_some(list(fresh))})"
        )
    resized = []
    for name, source in sources.items():
        shape, target = there[source].shape, fresh[name].shape
        if shape == target:
            continue
        if (
            POSITION not in name.split("/")
            or len(shape) != len(target)
            or len(shape) not in (2, 3)
            or shape[-1] != target[-1]
        ):
            raise UserError(
                f"{source} in {where} has the shape {shape}, and {name} here {target}; "
                "leave it out by initialize.exclude"
            )
        resized.append(name)
    return resized


def _sources(config: Initialize, there: dict[str, Any]) -> dict[str, str]:
    """By name here, the name there, of everything that is to be loaded if this model has it."""
    part = "ema/" if config.average else "model/"
    sources: dict[str, str] = {}
    for source in there:
        if not source.startswith(part):
            continue
        name = source.removeprefix(part)
        for rename in config.rename:
            name = rename(name)
        if not fnmatchcase(name, config.include) or (config.exclude and fnmatchcase(name, config.exclude)):
            continue
        if name in sources:
            raise UserError(
                f"initialize.rename makes {name} of both {sources[name]} and {source}; make it more particular"
            )
        sources[name] = source
    return sources


def _fit(value: Array, like: Array) -> Array:
    """The value in the shape, dtype and sharding of `like`."""
    if value.shape == like.shape:
        return value.astype(like.dtype)

    def run(value: Array) -> Array:
        value = resize_position(value, like.shape).astype(like.dtype)
        return jax.sharding.reshard(value, like.sharding) if isinstance(like.sharding, NamedSharding) else value

    return jax.jit(run)(value)


def resize_position(position: Float[Array, "*N D"], shape: tuple[int, ...]) -> Float[Array, "*M D"]:
    """Position embeddings of a grid [H, W, D] or a sequence [N, D] for another number of places."""
    return jax.image.resize(position, shape, "bicubic" if position.ndim == 3 else "linear")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
