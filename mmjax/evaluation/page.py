"""One page that holds all it shows, from a template of this folder."""

from pathlib import Path
from typing import Any

from mmjax.units import number

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page of a template, in which `style` is how every page looks: as a run's report does."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number}
    style = _read("report.html").partition("<style>")[2].partition("</style>")[0]
    return environment.from_string(_read(template)).render(style=style, **values)


def _read(template: str) -> str:
    return (FOLDER / template).read_text(encoding="utf-8")
