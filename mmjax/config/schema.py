"""The types of configuration fields: what each accepts, in words, and the check of a value.

A configuration holds numbers, truths, texts, None, tuples of these, mappings by name, and nodes: frozen chz classes,
whose class is any concrete subclass of the field's own class whose module is imported, whoever wrote it.
"""

import ast
import collections.abc
import contextlib
import inspect
import itertools
import math
import textwrap
import types
import typing
from typing import Any, Literal

import chz

from mmjax.errors import UserError

PACKAGE = "mmjax"

MISSING = object()
"""A value that nobody has given."""


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation: `int | None` -> (int, NoneType)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(arm for part in typing.get_args(annotation) for arm in union_members(part))
    return (type(None) if annotation is None else annotation,)


def is_node(annotation: Any) -> bool:
    """Whether an annotation is a chz class."""
    return isinstance(annotation, type) and "__chz_fields__" in vars(annotation)


def known_classes(annotation: Any) -> dict[str, type]:
    """The classes a field can hold by `class_path`: concrete chz classes whose modules are imported."""
    found: dict[str, type] = {}
    pending = [arm for arm in union_members(annotation) if is_node(arm)]
    while pending:
        # In the order of definition, so that a class that a notebook defines again replaces the old one.
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if is_node(cls) and not inspect.isabstract(cls):
            found[class_path(cls)] = cls
    return found


def choices(annotation: Any) -> dict[str, type]:
    """The classes a field can hold by short name. Where two have the same one, `check_unique` refuses it."""
    classes = sorted(known_classes(annotation).values(), key=lambda cls: (cls.__name__, is_builtin(cls)))
    return {cls.__name__: cls for cls in classes}


def check_unique(name: str, annotation: Any) -> None:
    """Raise UserError, naming them all, where several classes that a field can hold have this short name."""
    same = [cls for cls in known_classes(annotation).values() if cls.__name__ == name]
    if len(same) > 1:
        places = " and ".join(sorted(f"{cls.__module__}:{cls.__qualname__}" for cls in same))
        raise UserError(f"there are {len(same)} classes called {name}: {places}; rename one of them")


def is_builtin(cls: type) -> bool:
    """Whether a class is one of mmjax's own. Those of experiments, which are installed inside it, are not."""
    return f"{cls.__module__}.".startswith(f"{PACKAGE}.") and not cls.__module__.startswith(f"{PACKAGE}.experiments.")


def class_path(cls: type) -> str:
    """How a class is stored: mmjax.fusion.concat.Concat, or my_package.fusions:Hadamard for a user's."""
    return f"{cls.__module__}{'.' if is_builtin(cls) else ':'}{cls.__qualname__}"


def entry_annotation(annotation: Any) -> Any:
    """The annotation of a mapping's entries, or MISSING where no mapping is admitted."""
    for arm in union_members(annotation):
        if typing.get_origin(arm) in (collections.abc.Mapping, dict):
            return typing.get_args(arm)[1]
    return MISSING


def _item_annotations(arm: Any, length: int) -> tuple[Any, ...] | None:
    """The annotations of a tuple's items if the arm is a tuple of that length."""
    if typing.get_origin(arm) is not tuple:
        return None
    items = typing.get_args(arm)
    if len(items) == 2 and items[1] is ...:
        return (items[0],) * length
    return items if len(items) == length else None


def item_annotations(annotation: Any, length: int) -> tuple[Any, ...] | None:
    """The annotations of a tuple's items, where they have keys of their own and the length fits.

    The items of a tuple of single values have none: it is written in one piece, 1,2,3.
    """
    for arm in union_members(annotation):
        if typing.get_origin(arm) is tuple and not _is_flat(arm):
            if (items := _item_annotations(arm, length)) is not None:
                return items
    return None


def _is_flat(arm: Any) -> bool:
    """Whether a tuple's items are single values, so that it is written in one piece: 1,2,3."""
    parts = [part for item in typing.get_args(arm) if item is not ... for part in union_members(item)]
    return all(part in (bool, int, float, str, type(None)) or typing.get_origin(part) is Literal for part in parts)


def describe(annotation: Any) -> str:
    """What a field accepts, as help shows it: "int | None", "relu | gelu", "Concat | CrossAttention"."""
    words: list[str] = []
    for arm in union_members(annotation):
        if is_node(arm):
            words.extend(choices(arm))
        elif typing.get_origin(arm) is Literal:
            words.extend(text(choice) for choice in typing.get_args(arm))
        elif typing.get_origin(arm) is tuple:
            items = ["..." if item is ... else describe(item) for item in typing.get_args(arm)]
            words.append(",".join(f"({item})" if " " in item else item for item in items))
        elif (entries := entry_annotation(arm)) is not MISSING:
            words.append(f"entries of {describe(entries)}")
        else:
            words.append({bool: "true | false", type(None): "None", str: "text"}.get(arm) or arm.__name__)
    return " | ".join(dict.fromkeys(words))


def text(value: Any) -> str:
    """A single value or a flat tuple as one writes it on a command line."""
    if isinstance(value, tuple):
        return ",".join(text(item) for item in value) if value else "()"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def coerce(value: Any, annotation: Any) -> Any:
    """`value` as the annotation's type: 1 becomes 1.0 for a float. Raises ValueError if it does not fit."""
    for arm in union_members(annotation):
        if typing.get_origin(arm) is Literal:
            if any(type(value) is type(choice) and value == choice for choice in typing.get_args(arm)):
                return value
        elif arm in (bool, int, str, type(None)):
            if type(value) is arm:
                return value
        elif isinstance(value, tuple) and (items := _item_annotations(arm, len(value))) is not None:
            with contextlib.suppress(ValueError):
                return tuple(coerce(item, kind) for item, kind in zip(value, items, strict=True))
    # Floats last, so that 1 stays whole where whole numbers are admitted too.
    if float in union_members(annotation) and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value) + 0.0  # What is equal must look equal: -0.0 becomes 0.0.
    raise ValueError(f"expected {describe(annotation)}")


def field_default(field: Any) -> Any:
    """What a chz field holds when nobody says otherwise, or MISSING. (chz has no public name for it.)"""
    if not isinstance(field._default_factory, chz.util.MISSING_TYPE):
        return field._default_factory()
    return MISSING if isinstance(field._default, chz.util.MISSING_TYPE) else field._default


def keyed_fields(cls: type) -> dict[str, Any]:
    """The fields of a chz class by key; the key of a field named `from_` is `from`."""
    return {name.removesuffix("_"): field for name, field in chz.chz_fields(cls).items()}


def field_docs(cls: type) -> dict[str, str]:
    """The documentation of each field of a chz class: its `doc`, else the string after it."""
    fields = keyed_fields(cls)
    written: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        written |= _strings_after_fields(base) if is_node(base) else {}
    # (chz has no public name for a field's doc.)
    docs = {key: field._doc or written.get(field.logical_name, "") for key, field in fields.items()}
    return {key: " ".join(doc.split()) for key, doc in docs.items()}


def _strings_after_fields(cls: type) -> dict[str, str]:
    try:
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # A class that was not made from a file.
        return {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: doc.value.value
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }
