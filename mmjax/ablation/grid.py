"""The cells of an ablation: all combinations of choices, matched in cost by scaling the width."""

import itertools
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import chz

from mmjax.ablation.cell import Cell
from mmjax.ablation.match import Cost, match_width
from mmjax.config.experiment import Experiment
from mmjax.config.overrides import config_tree, resolve
from mmjax.config.schema import choices, is_builtin, text, union_members
from mmjax.errors import UserError
from mmjax.model import Model

WIDTH = "model.width"
Match = Literal["params", "flops", "none"]


def keys_of(over: str) -> list[str]:
    """The keys that are ablated. Raises UserError where there are none or one comes twice."""
    keys = [key.strip() for key in over.split(",") if key.strip()]
    if "seed" in keys:
        raise UserError("over=seed: every choice is trained with several seeds anyway; say how many by seeds=")
    if not keys or len(set(keys)) < len(keys):
        raise UserError(f"over={over} must name one key or several, each once, such as over=model.fusion,model.dropout")
    return keys


def choices_of(experiment: Experiment, keys: Sequence[str], given: str | None) -> list[list[str]]:
    """The values of each key: those given (`a,b` for one key, `a,b/c,d` for two), else all there are.

    Raises UserError, naming what can be had, for a key or a value that does not exist.
    """
    if given is None:
        found = [_all_choices(experiment, key) for key in keys]
    else:
        found = [[word.strip() for word in part.split(",") if word.strip()] for part in given.split("/")]
        if len(found) != len(keys):
            raise UserError(
                f"choices={given} are for {_keys(len(found))} and over={','.join(keys)} for {_keys(len(keys))};"
                " separate the choices of one key by commas, those of the next key by /"
            )
    for key, values in zip(keys, found, strict=True):
        for value in values:
            resolve(experiment, [f"{key}={value}"])
        if len(set(values)) < max(2, len(values)):
            raise UserError(f"{key} needs two choices or more, each once, and has {', '.join(values) or 'none'}")
    return found


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


def _all_choices(experiment: Experiment, key: str) -> list[str]:
    """All classes, words or booleans that a key can be. Raises UserError for a number or a text."""
    part = next((part for part in config_tree(experiment, "given").walk() if part.key == key), None)
    if part is None:
        resolve(experiment, [f"{key}=None"])  # says what is wrong with the key
        raise UserError(f"unknown key {key}")
    classes = list(_table_order(choices(part.annotation)))
    words = [text(word) for arm in union_members(part.annotation) for word in typing.get_args(arm) if _is_word(arm)]
    found = classes or words or (["false", "true"] if bool in union_members(part.annotation) else [])
    if not found:
        raise UserError(f"{key} is no choice among a few; say which values, such as choices=1,2,4")
    return found


def _is_word(arm: object) -> bool:
    return typing.get_origin(arm) is Literal


def _table_order(classes: dict[str, type]) -> list[str]:
    """The names in the order of mmjax's own table of them, if there is one; a user's come last."""
    own = (kind.__module__.rpartition(".")[0] for kind in classes.values() if is_builtin(kind))
    package = next((sys.modules[name] for name in own), None)
    table = list(vars(package).get("TABLE", {})) if package else []
    return sorted(classes, key=lambda name: table.index(name) if name in table else len(table))


def own_choice(experiment: Experiment, keys: Sequence[str]) -> str:
    """What the experiment itself has chosen."""
    parts = {part.key: part for part in config_tree(experiment, "given").walk()}
    return _label([parts[key].shown() for key in keys])


def _label(values: Sequence[str]) -> str:
    return " / ".join(values)


def make_grid(experiment: Experiment, keys: Sequence[str], values: Sequence[Sequence[str]], folder: Path) -> list[Cell]:
    """A cell for every combination of values. Raises UserError for one that cannot be."""
    cells = []
    for combination in itertools.product(*values):
        pairs = dict(zip(keys, combination, strict=True))
        made = resolve(experiment, [f"{key}={value}" for key, value in pairs.items()])
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(combination))
        cells.append(Cell(_label(combination), pairs, made, folder / "cells" / name))
    if len({cell.folder for cell in cells}) < len(cells):
        raise UserError("two choices differ only in signs that no folder's name can hold; leave one of them out")
    return cells


def check_width(by: Match, keys: Sequence[str]) -> None:
    """Raises UserError where the width is to be scaled and varied at once."""
    if WIDTH in keys:
        raise UserError(f"match={by} scales {WIDTH}, which is ablated itself; say match=none")


def match(cell: Cell, by: Match, target: Cost) -> Cell:
    """The cell with the width at which its model costs as much as the target. Raises UserError if none."""
    if by == "none":
        return cell
    kind: Literal["parameters", "flops"] = "parameters" if by == "params" else "flops"
    experiment = cell.experiment
    size, wanted = experiment.train.batch_size, getattr(target, kind)
    model: Model = match_width(experiment.model, cell.features, size, by=kind, target=wanted)
    matched = chz.replace(experiment, model=model)
    return Cell(cell.choice, cell.values, matched, cell.folder)
