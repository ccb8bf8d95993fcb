"""Configuration trees before their chz objects are made, so that errors can name the dotted key.

An experiment, its JSON and the command line all become a `ConfigNode` first, and only a whole and valid one is made.
chz's own Blueprint does not read such input here: it imports whatever "module:Class" names, evaluates lambdas, and its
errors are several lines long and leave out the key.
"""

import abc
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.config.schema import (
    MISSING,
    check_unique,
    choices,
    class_path,
    coerce,
    describe,
    entry_annotation,
    field_default,
    is_node,
    item_annotations,
    keyed_fields,
    known_classes,
    text,
    union_members,
)
from mmjax.errors import UserError

DEFAULT = "default"
"""The origin of a value that is its class's own default."""

WHOLE = "the configuration"
"""What the root, whose key is empty, is called."""

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4e38
"""Of the types in which steps and sizes are counted, and rates are multiplied."""


@dataclasses.dataclass
class ConfigNode(abc.ABC):
    """A node of a configuration tree: its dotted key, the types it admits, and where its content is from."""

    key: str
    annotation: Any
    origin: str

    def children(self, for_fingerprint: bool = False) -> dict[str, "ConfigNode"]:
        """The children by the last part of their keys; if `for_fingerprint`, without operational fields."""
        return {}

    def walk(self, for_fingerprint: bool = False) -> Iterator["ConfigNode"]:
        """This node and all below it, top down."""
        yield self
        for child in self.children(for_fingerprint).values():
            yield from child.walk(for_fingerprint)

    @abc.abstractmethod
    def make(self) -> Any:
        """The value this describes. Raises UserError where one is missing or a class refuses its values."""

    @abc.abstractmethod
    def data(self, for_fingerprint: bool = False) -> Any:
        """What JSON keeps of it; if `for_fingerprint`, without operational fields."""

    @abc.abstractmethod
    def shown(self) -> str:
        """The node for display: a value, a class's name, or the names of a mapping's entries."""


@dataclasses.dataclass
class ValueNode(ConfigNode):
    """A single value, a flat tuple, or nothing yet."""

    value: Any

    def make(self) -> Any:
        if self.value is MISSING:
            raise UserError(f"{self.key} is not given: set {self.key}={describe(self.annotation)}")
        for value in self.value if isinstance(self.value, tuple) else (self.value,):
            if reason := _unusable(value):
                raise UserError(f"{self.key}={_short(self.shown())}: {reason}")
        return self.value

    def data(self, for_fingerprint: bool = False) -> Any:
        return list(self.value) if isinstance(self.value, tuple) else self.value

    def shown(self) -> str:
        return "(not given)" if self.value is MISSING else text(self.value) or "''"


@dataclasses.dataclass
class ClassNode(ConfigNode):
    """An object of a chz class. A field whose metadata says "operational" does not decide a run's result."""

    cls: type
    fields: dict[str, ConfigNode]

    def children(self, for_fingerprint: bool = False) -> dict[str, ConfigNode]:
        kinds = keyed_fields(self.cls)
        return {
            name: field for name, field in self.fields.items() if not (for_fingerprint and _operational(kinds[name]))
        }

    def make(self) -> Any:
        kinds = keyed_fields(self.cls)
        values = {kinds[name].logical_name: field.make() for name, field in self.fields.items()}
        try:
            return self.cls(**values)
        except ValueError as error:
            raise UserError(self._refusal(" ".join(str(error).split()))) from error
        except (ArithmeticError, LookupError, MemoryError) as error:  # of a validator that calculates with them
            raise UserError(
                f"{self.key or WHOLE} cannot have these values: {str(error) or type(error).__name__}"
            ) from error

    def _refusal(self, reason: str) -> str:
        """A validator's reason with the key it is about: the field that the reason names, else the node."""
        words = [word.strip(".,:;'\"") for word in reason.replace("=", " ").split()] or [""]
        subjects = [words[0].removeprefix(f"{self.key}."), *(word for word in words if word.startswith("X_"))]
        named = [name for word in subjects if (name := word.removeprefix("X_")) in self.fields]
        reason = " ".join(word.removeprefix("X_") for word in reason.split())
        if named:
            # A reason that begins with the field and its value need not be told them twice.
            reason = reason.removeprefix(f"{named[0]}={self.fields[named[0]].shown()} ")
            return f"{join(self.key, named[0])}={self.fields[named[0]].shown()}: {reason}"
        return f"{self.key}: {reason}" if self.key else reason

    def data(self, for_fingerprint: bool = False) -> Any:
        return {"class": class_path(self.cls)} | {
            name: field.data(for_fingerprint) for name, field in self.children(for_fingerprint).items()
        }

    def shown(self) -> str:
        return self.cls.__name__


@dataclasses.dataclass
class MappingNode(ConfigNode):
    """A mapping by name."""

    entries: dict[str, ConfigNode]

    def children(self, for_fingerprint: bool = False) -> dict[str, ConfigNode]:
        return self.entries

    def make(self) -> Any:
        return {name: entry.make() for name, entry in self.entries.items()}

    def data(self, for_fingerprint: bool = False) -> Any:
        return {name: entry.data(for_fingerprint) for name, entry in self.entries.items()}

    def shown(self) -> str:
        return ",".join(self.entries) or "()"


@dataclasses.dataclass
class TupleNode(ConfigNode):
    """A tuple of nodes or of tuples."""

    items: list[ConfigNode]

    def children(self, for_fingerprint: bool = False) -> dict[str, ConfigNode]:
        return {str(index): item for index, item in enumerate(self.items)}

    def make(self) -> Any:
        return tuple(item.make() for item in self.items)

    def data(self, for_fingerprint: bool = False) -> Any:
        return [item.data(for_fingerprint) for item in self.items]

    def shown(self) -> str:
        return f"{len(self.items)} items" if self.items else "()"


def join(key: str, name: str) -> str:
    """The key of what is called `name` below `key`."""
    return f"{key}.{name}" if key else name


def tree_of_class(cls: type, key: str, annotation: Any, origin: str) -> ClassNode:
    """A node of that class with the defaults of all its fields."""
    fields: dict[str, ConfigNode] = {}
    for name, field in keyed_fields(cls).items():
        below, default = join(key, name), field_default(field)
        if default is MISSING:
            only = list(choices(field.x_type).values())
            if len(union_members(field.x_type)) == len(only) == 1:
                fields[name] = tree_of_class(only[0], below, field.x_type, DEFAULT)
            else:
                fields[name] = ValueNode(below, field.x_type, DEFAULT, MISSING)
        else:
            fields[name] = tree_of_value(default, below, field.x_type, DEFAULT, default)
    return ClassNode(key, annotation, origin, cls, fields)


def tree_of_value(
    value: Any, key: str, annotation: Any, origin: str, default: Any = MISSING, final: bool = False
) -> ConfigNode:
    """The tree of an existing value.

    Raises UserError, naming the key, where it is not what the annotation admits.

    What equals `default` has the origin "default". Fields are taken as they were given, or with `final` as they read
    afterwards: the two differ where a chz munger derives one value from others.
    """
    source = DEFAULT if default == value and isinstance(default, bool) == isinstance(value, bool) else origin
    if is_node(type(value)):
        if type(value) not in known_classes(annotation).values():
            raise UserError(f"{key or WHOLE} is of class {class_path(type(value))}, expected {describe(annotation)}")
        _check_unique(type(value).__name__, key, annotation)
        same = type(default) is type(value)
        fields: dict[str, ConfigNode] = {}
        for name, field in keyed_fields(type(value)).items():
            read = field.logical_name if final else field.x_name
            usual = getattr(default, read) if same else field_default(field)
            fields[name] = tree_of_value(getattr(value, read), join(key, name), field.x_type, origin, usual, final)
        return ClassNode(key, annotation, DEFAULT if same else origin, type(value), fields)
    entry = entry_annotation(annotation)
    if isinstance(value, Mapping) and entry is not MISSING:
        usual = default if isinstance(default, Mapping) else {}
        entries = {
            check_name(name, key): tree_of_value(item, join(key, name), entry, origin, usual.get(name, MISSING), final)
            for name, item in value.items()
        }
        return MappingNode(key, annotation, source, entries)
    if isinstance(value, tuple) and (kinds := item_annotations(annotation, len(value))) is not None:
        usual = (*(default if isinstance(default, tuple) else ()), *[MISSING] * len(value))
        parts = enumerate(zip(value, kinds, usual, strict=False))
        items = [tree_of_value(item, f"{key}.{i}", kind, origin, d, final) for i, (item, kind, d) in parts]
        return TupleNode(key, annotation, source, items)
    return _leaf(value, key, annotation, source)


def tree_of_json(data: Any, key: str, annotation: Any, origin: str) -> ConfigNode:
    """The tree of what `ConfigNode.data` returned. Raises UserError, naming the key, where it is invalid."""
    entry = entry_annotation(annotation)
    if isinstance(data, dict) and any(is_node(arm) for arm in union_members(annotation)):
        return _node_data(data, key, annotation, origin)
    if isinstance(data, dict) and entry is not MISSING:
        entries = {check_name(k, key): tree_of_json(v, join(key, k), entry, origin) for k, v in data.items()}
        return MappingNode(key, annotation, origin, entries)
    if isinstance(data, list) and (kinds := item_annotations(annotation, len(data))) is not None:
        below = enumerate(zip(data, kinds, strict=True))
        return TupleNode(
            key, annotation, origin, [tree_of_json(d, f"{key}.{i}", kind, origin) for i, (d, kind) in below]
        )
    return _leaf(tuple(data) if isinstance(data, list) else data, key, annotation, origin)


def _node_data(data: dict[str, Any], key: str, annotation: Any, origin: str) -> ClassNode:
    cls = _known_class(data.get("class"), key, annotation)
    known = keyed_fields(cls)
    given = {name: value for name, value in data.items() if name != "class"}
    for name in given:
        if name not in known:
            raise UserError(f"{join(key, name)} is not a key of {cls.__name__}, which has {', '.join(known) or 'none'}")
    fields: dict[str, ConfigNode] = {}
    for name, field in known.items():
        default = field_default(field)
        if name in given:
            fields[name] = tree_of_json(given[name], join(key, name), field.x_type, origin)
        elif _operational(field) and default is not MISSING:  # a run older than the field, which changes nothing of it
            fields[name] = tree_of_value(default, join(key, name), field.x_type, DEFAULT)
        else:
            raise UserError(f"{join(key, name)} is missing: {cls.__name__} needs it ({describe(field.x_type)})")
    return ClassNode(key, annotation, origin, cls, fields)


def _operational(field: Any) -> bool:
    """Whether a field's metadata says that it does not decide a run's result."""
    return bool((field.metadata or {}).get("operational"))


def _leaf(value: Any, key: str, annotation: Any, origin: str) -> ValueNode:
    try:
        return ValueNode(key, annotation, origin, coerce(value, annotation))
    except ValueError as error:
        shown = _short(repr(list(value) if isinstance(value, tuple) else value))
        raise UserError(f"{key or WHOLE} is {shown}: {error}") from error


def _unusable(value: Any) -> str | None:
    """Why a value of the right type still cannot be used, or None."""
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return f"must lie between -{LARGEST_INT} and {LARGEST_INT}"
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        return f"must lie between -{LARGEST_FLOAT} and {LARGEST_FLOAT}"
    if isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
        return "must be text without NUL characters and bytes that are not UTF-8"
    return None


def _short(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _known_class(path: Any, key: str, annotation: Any) -> type:
    """The class of that stored name among those the annotation admits; nothing is imported or evaluated."""
    known = known_classes(annotation)
    if isinstance(path, str) and path in known:
        _check_unique(known[path].__name__, key, annotation)
        return known[path]
    where, there = key or WHOLE, ", ".join(sorted(known))
    if not isinstance(path, str):
        raise UserError(f"{where} names no class, expected one of {there}")
    module, colon, _ = path.partition(":")
    if colon and module not in sys.modules and all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"{where} is of class {path[:80]!r}, whose module is not imported; import it first, by "
            f"modules={module[:80]} in a command"
        )
    raise UserError(f"{where} names {path[:80]!r}, which is none of its classes: {there}")


def _check_unique(name: str, key: str, annotation: Any) -> None:
    try:
        check_unique(name, annotation)
    except UserError as error:
        raise UserError(f"{key or WHOLE}: {error}") from error


def check_name(name: Any, key: str) -> str:
    """`name`, if it can name a mapping's entry and so be part of a dotted key. Raises UserError otherwise."""
    if isinstance(name, str) and name.replace("-", "_").isidentifier():
        return name
    raise UserError(f"{key} has an entry called {name!r}; a name is made of letters, digits, _ and -")
