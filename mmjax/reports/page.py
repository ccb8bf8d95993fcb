"""The HTML page of all reports: self-contained, with every text escaped."""

import base64
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.files import write_atomic
from mmjax.formatting import number
from mmjax.reports.plots import data_uri

TEMPLATE = Path(__file__).parent / "templates" / "page.html"
# A cell that holds one figure, and a word so long that it may be broken anywhere.
FIGURE = re.compile(r"[<>+−-]?\s?\d[\d.,e+−-]*\s?[%×/µ\w]{0,6}( \d+ \w{1,3})?|[–✓✗]?|not finite|yes|no")
LONG_WORD = re.compile(r"\S{22}")
# CSS pixels a drawing needs for each of its points so that its letters can be read.
READABLE = 0.95


class Cell(NamedTuple):
    """A table's cell: text, a note under it, a `tone` (better, worse, best) and a shade from 0 to 1."""

    text: str
    note: str = ""
    tone: str = ""
    shade: float = 0.0


class Picture(NamedTuple):
    """A picture and a sound as data URIs, a caption, and a `tone` (right or wrong); each may be ""."""

    uri: str
    caption: str
    sound: str = ""
    tone: str = ""


class Key(NamedTuple):
    """An entry of a legend: a line in one of the page's hues."""

    name: str
    hue: int
    dash: Sequence[float] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns with headings, the first of which names the rows.

    One that is `folded` opens by its title.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A plot as SVG under a title, with a legend."""

    svg: str
    title: str = ""
    legend: Sequence[Key] = ()


@dataclasses.dataclass(frozen=True)
class Card:
    """One example: pictures, words with weights in [-1, 1], lines of text, a note, and tables."""

    title: str
    pictures: Sequence[tuple[str, ...]] = ()
    words: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()
    lines: Sequence[str] = ()
    note: str = ""
    tables: Sequence[Table] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page: a text, tables, drawings as SVG, cards, preformatted text, explained terms.

    Drawings lie side by side as far as they can be read. A section that is `folded` opens by its title; a `warning`
    stands out. Without a title it has no heading.
    """

    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    drawings: Sequence[str | Drawing] = ()
    cards: Sequence[Card] = ()
    text: str = ""
    terms: Sequence[tuple[str, str]] = ()
    folded: bool = False
    warning: bool = False


def write_page(path: str | Path, title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    """Writes the page all at once and returns its path. Raises UserError where it cannot be written.

    `facts` stand under the title by their names; those that are "" are left out.
    """
    environment = _environment()
    page = environment.get_template(TEMPLATE.name).render(
        title=title, facts={name: number(value) for name, value in facts.items() if value != ""}, sections=sections
    )
    return write_atomic(path, page)


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = TEMPLATE.read_text(encoding="utf-8").partition("<style>")[2]
    colours = style.partition("* {")[0] + ":root { color: var(--ink); }"
    environment.filters |= {
        "svg_uri": functools.partial(_svg_uri, style=colours),
        "drawing": lambda each: Drawing(each) if isinstance(each, str) else each,
        "cell": lambda each: Cell(each) if isinstance(each, str) else each,
        "picture": lambda each: Picture(*each),
        "widest": _widest,
        "numeric": _numeric,
        "small": _small,
        "breakable": lambda text: Markup("<wbr>").join(re.split(r"(?<=[^\s/_])(?=[/_][^\s/_])", text)),
    }
    environment.tests["long"] = lambda text: LONG_WORD.search(text) is not None
    return environment


def _svg_uri(svg: str, style: str) -> str:
    """A drawing in the page's colours as an image: whatever it holds, nothing in it runs or is loaded."""
    return data_uri("image/svg+xml", svg.replace(">", f"><style>{style}</style>", 1).encode())


def _widest(drawings: Sequence[str | Drawing]) -> int:
    """The CSS pixels that each of the drawings is given at least."""
    found = [re.search(r'viewBox="0 0 ([\d.]+)', each if isinstance(each, str) else each.svg) for each in drawings]
    return round(max(READABLE * float(match[1]) if match else 0 for match in found)) + 34


def _numeric(table: Table) -> list[bool]:
    """Which columns hold figures, which are aligned to the right and not broken."""
    texts = [
        [cell if isinstance(cell, str) else cell.text for cell in column] for column in zip(*table.rows, strict=True)
    ]
    found = [place > 0 and all(map(FIGURE.fullmatch, column)) and any(column) for place, column in enumerate(texts)]
    return found or [False] * len(table.columns)


def _small(uri: str) -> bool:
    """Whether a PNG has so few pixels that they are shown as squares."""
    head = uri.partition("base64,")[2][:64]
    size = base64.b64decode(head + "=" * (-len(head) % 4), validate=False)[16:24] if uri.startswith("data:") else b""
    return 0 < max(int.from_bytes(size[:4], "big"), int.from_bytes(size[4:], "big")) < 96


def read_section(fields: Mapping[str, Any]) -> Section:
    """A section from its JSON. Raises KeyError, TypeError, ValueError or the like for anything else."""
    return Section(
        title=str(fields["title"]),
        about=str(fields["about"]),
        tables=[_read_table(table) for table in fields["tables"]],
        drawings=[_read_drawing(drawing) for drawing in fields["drawings"]],
        cards=[
            Card(
                title=str(card["title"]),
                pictures=[Picture(*_texts(picture)) for picture in card["pictures"]],
                words=[
                    (str(name), [(str(word), _finite(size)) for word, size in words]) for name, words in card["words"]
                ],
                lines=_texts(card["lines"]),
                note=str(card["note"]),
                tables=[_read_table(table) for table in card["tables"]],
            )
            for card in fields["cards"]
        ],
        text=str(fields["text"]),
        terms=[(str(term), str(meaning)) for term, meaning in fields["terms"]],
        folded=bool(fields["folded"]),
        warning=bool(fields["warning"]),
    )


def _read_table(table: Mapping[str, Any]) -> Table:
    rows = [
        [
            cell if isinstance(cell, str) else Cell(str(cell[0]), str(cell[1]), str(cell[2]), _finite(cell[3]))
            for cell in row
        ]
        for row in table["rows"]
    ]
    return Table(_texts(table["columns"]), rows, str(table["title"]), bool(table["folded"]))


def _read_drawing(drawing: Any) -> str | Drawing:
    if isinstance(drawing, str):
        return drawing
    keys = [
        Key(str(name), int(hue), None if dash is None else [_finite(part) for part in dash], str(note))
        for name, hue, dash, note in drawing["legend"]
    ]
    return Drawing(str(drawing["svg"]), str(drawing["title"]), keys)


def _texts(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)
