"""One page that holds all it shows, from a template of this folder."""

import functools
from pathlib import Path
from typing import Any

from mmjax.evaluation.figures import data_uri
from mmjax.units import number

FOLDER = Path(__file__).parent


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
