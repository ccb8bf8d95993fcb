"""`key=value` on a command line, applied to a tree of configuration nodes.

    model.fusion=CrossAttention    choose a class; its other keys start from that class's defaults
    model.fusion.depth=4           set one of its values
    model.encoders.speech=None     take an entry of a mapping away
    model.encoders.depth=ViT       add one
    optimizer.rules.0.freeze=true  an item of a tuple; the next index adds one

The order on the command line does not matter: what is nearer to the root is applied first.
"""

import contextlib
import difflib
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from mmjax.config.schema import (
    check_unique,
    choices,
    coerce,
    describe,
    entry_annotation,
    item_annotations,
    keyed_fields,
    text,
    union_members,
)
from mmjax.config.tree import (
    ClassNode,
    ConfigNode,
    MappingNode,
    TupleNode,
    ValueNode,
    check_name,
    tree_of_class,
    tree_of_value,
)
from mmjax.errors import UserError

T = TypeVar("T")

ORIGIN = "command line"
# What other programs call the last part of a key, where it is not its initials (lr, bs, wd), for suggestions alone.
SYNONYMS = {
    "epochs": "steps",
    "iterations": "steps",
    "max_steps": "steps",
    "batch": "batch_size",
    "dim": "width",
    "hidden_size": "width",
    "num_layers": "depth",
    "layers": "depth",
    "num_heads": "heads",
    "precision": "dtype",
    "grad_accum": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "max_grad_norm": "clip",
    "grad_clip": "clip",
    "warmup_steps": "warmup",
    "num_workers": "workers",
    "output_dir": "run_dir",
    "save_every": "every",
}
# No key is longer than this, and no tuple has an index of more digits.
LONGEST, DIGITS = 200, 9


def resolve(node: T, pairs: Sequence[str]) -> T:
    """A configuration with `key=value` words applied. Raises UserError with the key and the choices."""
    return apply(config_tree(node, "given"), pairs).make()


def parse_pairs(pairs: Sequence[str], cls: type[T]) -> T:
    """A configuration of a class from `key=value` words. Raises UserError with the key and choices."""
    return apply(config_tree(cls, "given"), pairs).make()


def config_tree(node: Any, origin: str) -> ClassNode:
    """The tree of a configuration, or of a class's defaults; `origin` names the source of other values."""
    if isinstance(node, type):
        return tree_of_class(node, "", node, origin)
    made = tree_of_value(node, "", type(node), origin)
    assert isinstance(made, ClassNode)
    return made


def apply(root: ClassNode, pairs: Sequence[str]) -> ClassNode:
    """`root` with every `key=value` set, keys near the root first. Raises UserError for a bad one."""
    values = split(pairs)
    for key in sorted(values, key=lambda key: (key.count("."), _natural(key))):
        _assign(root, key, values[key])
    return root


def find(root: ClassNode, key: str) -> ConfigNode:
    """The node of that key. Raises UserError where there is none."""
    node: ConfigNode = root
    for name in key.split("."):
        node = _below(root, node, name, key)
    return node


def split(pairs: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a dict. Raises UserError for any other word, and for a key given twice."""
    values: dict[str, str] = {}
    for word in pairs:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise UserError(f"{word} is not key=value; keys are written without dashes, such as seed=1 (or --help)")
        if not equals or not key:
            raise UserError(f"{word!r} is not key=value; write for example seed=1")
        if not value:
            raise UserError(f"{key}= has no value; write {key}=VALUE")
        if key in values:
            raise UserError(f"{key} is given twice: {values[key]} and {value}; give it once")
        values[key] = value
    return values


def _natural(key: str) -> list[tuple[int, int, str]]:
    """For sorting: items of tuples by number, so that they can be added in one command."""
    return [(1, 0, part) if (index := _index(part)) is None else (0, index, "") for part in key.split(".")]


def _index(part: str) -> int | None:
    """The part of a key as an index, if it is one."""
    return int(part) if part.isdecimal() and len(part) <= DIGITS else None


def _assign(root: ClassNode, key: str, value: str) -> None:
    """Set one key below the root."""
    *path, last = key.split(".")
    parent: ConfigNode = root
    for name in path:
        parent = _below(root, parent, name, key)
    if isinstance(parent, ClassNode):
        _below(root, parent, last, key)
        parent.fields[last] = _read(parent.fields[last], value)
    elif isinstance(parent, MappingNode):
        _assign_entry(root, parent, last, key, value)
    elif isinstance(parent, TupleNode):
        _assign_item(root, parent, last, key, value)
    else:
        raise _unknown(root, parent, key)


def _below(root: ClassNode, parent: ConfigNode, name: str, key: str) -> ConfigNode:
    """The child of that name, for a key that goes through it."""
    children = parent.children()
    if name not in children:
        raise _unknown(root, parent, key)
    child = children[name]
    # What is None becomes a tuple for the key of its first item, or the only class that has the key. None from the
    # command line stays.
    none = isinstance(child, ValueNode) and child.value is None and child.origin != ORIGIN
    if isinstance(parent, ClassNode) and none and child.key != key:
        after, kinds = key.removeprefix(f"{child.key}.").partition(".")[0], choices(child.annotation).values()
        options = [cls for cls in kinds if len(kinds) == 1 or after in keyed_fields(cls)]
        if after == "0" and item_annotations(child.annotation, 1) is not None:
            child = parent.fields[name] = TupleNode(child.key, child.annotation, ORIGIN, [])
        elif len(options) == 1:
            child = parent.fields[name] = tree_of_class(options[0], child.key, child.annotation, ORIGIN)
    return child


def _assign_entry(root: ClassNode, parent: MappingNode, name: str, key: str, value: str) -> None:
    """Set, add or take away an entry of a mapping. One that may not be None is removed by None."""
    annotation = entry_annotation(parent.annotation)
    if name not in parent.entries:
        if value == "None":
            raise _unknown(root, parent, key)
        check_name(name, parent.key)
        parent.entries[name] = _read(ValueNode(key, annotation, ORIGIN, None), value)
    elif value == "None" and type(None) not in union_members(annotation):
        del parent.entries[name]
    else:
        parent.entries[name] = _read(parent.entries[name], value)


def _assign_item(root: ClassNode, parent: TupleNode, name: str, key: str, value: str) -> None:
    """Set an item of a tuple, or add one behind the last."""
    index = _index(name)
    if index is not None and index < len(parent.items):
        parent.items[index] = _read(parent.items[index], value)
        return
    kinds = item_annotations(parent.annotation, len(parent.items) + 1)
    if index != len(parent.items) or kinds is None:
        raise _unknown(root, parent, key)
    parent.items.append(_read(ValueNode(key, kinds[-1], ORIGIN, None), value))


def _read(old: ConfigNode, value: str) -> ConfigNode:
    """The node that `value` makes in place of `old`: an imported class, or a value of its type."""
    key, annotation = old.key, old.annotation
    options = choices(annotation)
    if value in options:
        try:
            check_unique(value, annotation)
        except UserError as error:
            raise UserError(f"{key}={value}: {error}") from error
        if isinstance(old, ClassNode) and old.cls is options[value]:
            old.origin = ORIGIN
            return old
        return tree_of_class(options[value], key, annotation, ORIGIN)
    if value == "()" and item_annotations(annotation, 0) is not None:
        return TupleNode(key, annotation, ORIGIN, [])
    try:
        return ValueNode(key, annotation, ORIGIN, _convert(value, annotation))
    except ValueError as error:
        if options:
            near = f"; the nearest is {nearest(value, options)}" if len(options) > 1 else ""
            raise UserError(f"{key}={value}: no such class{near}; choose from {describe(annotation)}") from error
        if isinstance(old, MappingNode | TupleNode):
            first = next(iter(old.children()), "0" if isinstance(old, TupleNode) else "NAME")
            raise UserError(f"{key}={value}: set what is in it one by one, such as {key}.{first}=...") from error
        raise UserError(f"{key}={value}: expected {describe(annotation)}") from error


def _convert(value: str, annotation: Any) -> Any:
    """A word as a value of the annotation, and as a text only if it is nothing else. Raises ValueError."""
    for arm in sorted(union_members(annotation), key=lambda arm: arm is str):
        with contextlib.suppress(ValueError):
            return coerce(_convert_arm(value, arm), arm)
    raise ValueError(value)


def _convert_arm(value: str, arm: Any) -> Any:
    if typing.get_origin(arm) is Literal:
        return next((choice for choice in typing.get_args(arm) if text(choice) == value), value)
    if typing.get_origin(arm) is tuple:
        inside = value[1:-1] if re.fullmatch(r"\(.*\)|\[.*\]", value) else value
        words = [word.strip() for word in inside.removesuffix(",").split(",")] if inside else []
        kinds = typing.get_args(arm)
        kinds = (kinds[0],) * len(words) if kinds[1:] == (...,) else kinds
        return tuple(_convert(word, kind) for word, kind in zip(words, kinds, strict=True))
    if arm is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if arm is type(None):
        return None if value == "None" else value
    return arm(value) if arm in (int, float) else value


def _unknown(root: ClassNode, parent: ConfigNode, key: str) -> UserError:
    """The error for an unknown key: the nearest key, and the keys below `parent`."""
    keys = [found.key for found in root.walk() if found.key]
    near = f"the nearest is {nearest(key, keys)}; " if keys else ""
    there = ", ".join(parent.children())
    place = parent.key or "the top level"
    if isinstance(parent, ValueNode) and choices(parent.annotation):
        there = f"{place} is {parent.shown()}; set {place}={describe(parent.annotation)} first"
    elif isinstance(parent, ValueNode):
        there = f"{place} is a single value ({describe(parent.annotation)})"
    elif isinstance(parent, MappingNode):
        kind = describe(entry_annotation(parent.annotation))
        there = f"{place} has {there or 'no entry'}, and NAME={kind} adds one"
    elif isinstance(parent, TupleNode):
        there = f"{place} has {parent.shown()}, and {place}.{len(parent.items)}=... adds one"
    else:
        there = f"{place} has {there or 'no keys'}"
    return UserError(f"unknown key {key}; {near}{there}")


def nearest(word: str, among: Iterable[str]) -> str:
    """The most similar of some keys.

    Last parts count as much as the whole, so that `steps` finds `train.steps`. Of a last part also its initials (`lr`)
    and what others call it (`epochs`) count as the same.
    """
    word = word[-LONGEST:]
    path, dot, last = word.rpartition(".")
    meant = SYNONYMS.get(last, last)

    def similarity(other: str) -> float:
        name = other.rpartition(".")[2]
        initials = "".join(part[:1] for part in name.split("_"))
        parts = ((f"{path}{dot}{meant}", other), (name if "_" in name and last == initials else meant, name))
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in parts)

    return max(among, key=similarity)
