"""One page that holds all it shows, from a template of this folder."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.formatting import number
from mmjax.reports.plots import data_uri

FOLDER = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns with a heading each, the first of which names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Card:
    """Something about one example: pictures as data URIs with what they are, words each with a weight in [-1, 1], and
    lines of text."""

    title: str
    pictures: Sequence[tuple[str, str]] = ()
    words: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()
    lines: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, in this order: what it is about, tables, drawings as SVG, cards, and preformatted text.

    Drawings lie side by side, or, where they are `wide`, one below the other.
    """

    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    drawings: Sequence[str] = ()
    cards: Sequence[Card] = ()
    text: str = ""
    wide: bool = False


def render(template: str, **values: Any) -> str:
    """The page of a template, in which `style` is how every page looks: as a run's report does."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number}
    report = (FOLDER / "report.html").read_text(encoding="utf-8")
    style = report.partition("<style>")[2].partition("</style>")[0]
    colours, _, _ = style.partition("* {")
    environment.filters["svg_uri"] = functools.partial(_svg_uri, style=f"{colours} :root {{ color: var(--ink); }}")
    return environment.get_template(template).render(style=style, **values)


def _svg_uri(svg: str, style: str) -> str:
    """A drawing in the page's colours as an image: whatever it holds, nothing in it runs or is loaded."""
    return data_uri("image/svg+xml", svg.replace(">", f"><style>{style}</style>", 1).encode())
