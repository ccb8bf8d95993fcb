"""One page that holds all it shows, from a template of this folder."""

from pathlib import Path
from typing import Any

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
    return environment.get_template(template).render(style=style, **values)
