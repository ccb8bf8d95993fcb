"""The text of `--help`: a page that fits the terminal, or one key with its choices."""

import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmjax.config.overrides import ORIGIN, config_tree, find
from mmjax.config.schema import MISSING, choices, describe, entry_annotation, field_docs, item_annotations
from mmjax.config.tree import DEFAULT, ClassNode, ConfigNode, tree_of_class, tree_of_value

HEADINGS = {"critic_optimizer": "optimizer"} | dict.fromkeys(("checkpoint", "mesh", "rules", "data_dir"), "machine")
"""The heading of a key at the top level, where it is not the key itself or, for a single value, none."""
MOST_ROWS = 40
"""Of more keys than this only the level that is asked for is listed."""
LONGEST, LONGEST_KIND = 44, 60
COLUMNS = 100
"""The width where the output is no terminal."""


def first_line(doc: str | None) -> str:
    """The first line of a docstring."""
    return (doc or "").strip().partition("\n")[0]


def named(rows: dict[str, str]) -> list[str]:
    """Names, each with a line about it that ends with the terminal's."""
    column = max(map(len, rows), default=0)
    return [_cut(f"  {name:<{column}}  {about}".rstrip(), _width()) for name, about in rows.items()]


def overview(root: ClassNode, configuration: Any, pairs: Sequence[str]) -> list[str]:
    """The keys of a configuration: each with its description where they are few, else by group.

    `pairs` are the words of the command line, of which those that removed an entry are no keys any more.
    """
    values = _final(root, configuration)
    if len(list(root.walk())) <= MOST_ROWS:
        return _rows(_documented(root), values)
    docs, own, blocks = field_docs(root.cls), [], dict[str, list[str]]()
    for name, child in root.children().items():
        heading = HEADINGS.get(name, name if child.children() else "")
        if not heading:
            own.append((child, docs[name]))
            continue
        expanded = child.children() if heading == name or heading not in root.children() else {}
        words = [_word(child, values)] if len(choices(child.annotation)) > 1 or not child.children() else []
        for below in expanded.values():
            words += [_word(part, values) for part in _entries(below)]
        blocks.setdefault(heading, []).extend(words)
    keys = {part.key for part in root.walk()}
    given = [_word(part, values) for part in root.walk() if part.origin == ORIGIN]
    given += [pair for pair in pairs if pair.partition("=")[0] not in keys]
    lines = [*(["from the command line", *_fill(given, "  "), ""] if given else []), *_rows(own, values)]
    for heading, words in blocks.items():
        lines += [heading, *_fill(words, "  ")]
    return lines


def subtree(root: ClassNode, configuration: Any, key: str) -> list[str]:
    """One key, those below it, and the classes it can be. Raises UserError for an unknown key."""
    node = find(root, key)
    pairs = list(_documented(root))
    known = [pair for pair in pairs if pair[0].key == key] or [(node, "")]
    below = [(part, doc) for part, doc in pairs if part.key.startswith(f"{key}.")] or list(_documented(node))[1:]
    if len(below) > MOST_ROWS:
        below = [(part, doc) for part, doc in below if part.key.count(".") == key.count(".") + 1]
    return [*_rows([*known, *below], _final(root, configuration)), *_choices(node)]


def _choices(node: ConfigNode) -> list[str]:
    """The classes that a node, or what is in it, can be, with their fields; or a long list of values."""
    annotation = node.annotation
    if (entry := entry_annotation(annotation)) is not MISSING:
        annotation = entry
    elif items := item_annotations(annotation, 1):
        annotation = items[0]
    options, kind = choices(annotation), describe(annotation)
    if not options and len(kind) > LONGEST_KIND:
        return [
            "",
            f"choices of {node.key}:",
            *textwrap.wrap(kind, _width(), initial_indent="  ", subsequent_indent="  "),
        ]
    if not options or (list(options.values()) == [getattr(node, "cls", None)]):
        return []
    lines = ["", f"choices of {node.key if annotation is node.annotation else f'{node.key}.NAME'}:"]
    for name, cls in options.items():
        lines.append(_cut(f"  {name}  {first_line(cls.__doc__)}", _width()))
        fields = tree_of_class(cls, "", annotation, DEFAULT).children()
        lines += _fill([_word(part, {}) for part in fields.values()], "      ")
    return lines


def _final(root: ClassNode, configuration: Any) -> dict[str, str]:
    """What every key holds in the end; nothing where there is no configuration yet."""
    if configuration is None:
        return {}
    final = tree_of_value(configuration, "", root.annotation, "", final=True)
    return {part.key: part.shown() for part in final.walk()}


def _entries(node: ConfigNode) -> list[ConfigNode]:
    """A node, or the entries of a mapping, which are as many as an experiment has."""
    is_mapping = entry_annotation(node.annotation) is not MISSING
    return list(node.children().values()) or [node] if is_mapping else [node]


def _documented(part: ConfigNode, doc: str = "") -> Iterator[tuple[ConfigNode, str]]:
    """All nodes below the root, with the description of each: that of its field, or of its class."""
    if part.key:
        yield part, doc or (first_line(part.cls.__doc__) if isinstance(part, ClassNode) else "")
    docs = field_docs(part.cls) if isinstance(part, ClassNode) else {}
    children = part.children().items()
    # What a command adds to an experiment would be lost behind the experiment's hundred keys.
    for name, child in children if part.key else sorted(children, key=lambda pair: bool(pair[1].children())):
        yield from _documented(child, docs.get(name, ""))


def _word(part: ConfigNode, values: dict[str, str]) -> str:
    """`key=value` as one would type it, a long value cut."""
    value = values.get(part.key, part.shown())
    return f"{part.key}={shlex.quote(_cut(value, LONGEST)) if ' ' in value else _cut(value, LONGEST)}"


def _rows(parts: Iterable[tuple[ConfigNode, str]], values: dict[str, str]) -> list[str]:
    """`key=value` with what it is for, its type, and, where that is not its default, who says so."""
    rows = [(_word(part, values), part, doc) for part, doc in parts]
    column = 4 + max((len(word) for word, *_ in rows if len(word) <= LONGEST), default=0)
    lines = []
    for word, part, doc in rows:
        origin = None if part.origin == DEFAULT else f"from {part.origin}"
        about = ", ".join(filter(None, (_kind(part), origin)))
        text = " ".join(filter(None, (doc, about and f"({about})")))
        wrapped = textwrap.wrap(text, max(_width() - column, 20)) or [""]
        if len(word) > column - 4:
            lines.append(f"  {word}")
        else:
            lines.append(f"{f'  {word}':<{column}}{wrapped.pop(0)}".rstrip())
        lines += [f"{'':{column}}{line}" for line in wrapped]
    return lines


def _kind(part: ConfigNode) -> str:
    """What a place admits. A node that can be nothing else is a mere heading."""
    kind = describe(part.annotation)
    if isinstance(part, ClassNode) and kind == part.shown():
        return ""
    count = kind.count(" | ") + 1
    return kind if len(kind) <= LONGEST_KIND else f"one of {count} that --help {part.key} lists"


def _fill(words: Iterable[str], indent: str) -> list[str]:
    """Words in lines as wide as the terminal; none is broken."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= _width():
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _width() -> int:
    return shutil.get_terminal_size((COLUMNS, 24)).columns


def own_keys(cls: type) -> list[str]:
    """A command's own keys with their descriptions, without those of the experiment or run."""
    inherited = vars(cls.__mro__[1]).get("__chz_fields__", {})
    parts = [pair for pair in _documented(config_tree(cls, "given")) if pair[0].key.split(".")[0] not in inherited]
    # What is not given is what the subject's own word says.
    return _rows([(part, doc) for part, doc in parts if getattr(part, "value", None) is not MISSING], {})


def paragraph(text: str) -> list[str]:
    """Wraps a text to the terminal's width."""
    return textwrap.wrap(text, _width(), break_on_hyphens=False)
