"""Look at data of your own: `python -m launch.inspect PATH [...]` prints its fields and writes a page with examples.

PATH is a folder, a file or a pattern with *; docs/data.md names the formats. The last line on standard output is the
path of the page.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import chz

from mmjax.errors import UserError
from mmjax.files import local_path, make_folder

from . import command_line


@chz.chz
class Request:
    """Data to be looked at."""

    path: str = chz.field(doc="the data")
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda request: _folder(request.path)),
        doc="the folder of the page; by default one of the data's own in ./inspections",
    )
    examples: int = chz.field(default=1000, doc="examples of each split that are read, evenly spread")
    data_dir: str = chz.field(default="~/.cache/mmjax", doc="where the index of the data is kept")

    @chz.validate
    def _valid(self) -> None:
        if self.examples < 1:
            raise ValueError("examples must be 1 or more")


def _folder(path: str) -> str:
    """Data of the same name elsewhere have another folder."""
    return command_line.own_folder("inspections", Path(path).name or "data", os.path.abspath(path))


def inspect(request: Request) -> Path:
    """Prints what the data hold; returns the path of the page."""
    from mmjax.data.formats.recognise import recognise
    from mmjax.data.survey import survey
    from mmjax.reports.inspection import field_lines, inspection_sections
    from mmjax.reports.page import write_page

    with make_folder(local_path(request.out)) as folder:
        source = recognise(request.path, request.data_dir)
        command_line.say(f"{request.path} is read as {type(source).__name__}")
        records = {split: source.open(request.data_dir, split) for split in source.splits}
        surveys = {split: survey(each, request.examples) for split, each in records.items() if len(each)}
        if not surveys:
            raise UserError(f"{request.path} holds no examples")
        for split, fields in surveys.items():
            command_line.say(f"{split}: {len(records[split]):,} examples, of which {fields[0].examples:,} were read")
            for line in field_lines(fields):
                command_line.say(line)
        facts = {"format": type(source).__name__, **{split: f"{len(each):,}" for split, each in records.items()}}
        sections = inspection_sections(surveys, records)
        return write_page(folder / "report.html", Path(request.path).name, facts, sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    subjects = command_line.Subjects(
        "path", dict, lambda name: Request(path=name), others=True, form="PATH", keys=Request
    )
    return command_line.main(inspect, "Shows what data of your own hold.", argv, subjects)


if __name__ == "__main__":
    sys.exit(main())
