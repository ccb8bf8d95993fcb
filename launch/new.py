"""Write an experiment for data of your own: `python -m launch.new PATH out=my_experiment.py [task=classify|...]`.

PATH is a folder, a file or a pattern with *: see docs/data.md for the formats. The last line on standard output is the
path of the file, which `python -m launch.train` trains.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import chz

from mmjax.errors import UserError
from mmjax.files import local_path, write_atomic

from . import command_line


@chz.chz
class Request:
    """An experiment to be written."""

    path: str = chz.field(doc="the data")
    out: str = chz.field(default="my_experiment.py", doc="the file to write")
    task: Literal["classify", "retrieve", "caption", "transcribe", "generate", "regress"] | None = chz.field(
        default=None, doc="what the model is to do; None: what the fields suggest"
    )
    target: str | None = chz.field(default=None, doc="the field that is predicted; None: the first that fits the task")
    data_dir: str = chz.field(default="~/.cache/mmjax", doc="where the index of the data is kept")


def new(request: Request) -> Path:
    """Looks at the data and writes the experiment; returns its path."""
    from mmjax.config.recipe import write_recipe
    from mmjax.data.formats.recognise import recognise
    from mmjax.data.survey import survey

    out = local_path(request.out)
    if out.exists():
        raise UserError(f"{out} is there: name another file by out")
    if out.suffix != ".py" or not out.stem.isidentifier():
        raise UserError(f"out={request.out}: name a Python file, such as my_experiment.py")
    source = recognise(request.path, request.data_dir)
    fields = survey(source.open(request.data_dir, "train"))
    text = write_recipe(out.stem, source, fields, request.task, request.target)
    path = write_atomic(out, text)
    for split in source.splits:
        if not len(source.open(request.data_dir, split)):
            command_line.say(f"the split {split} has no examples: train will refuse that; see Splits in docs/data.md")
    if "validation" not in source.splits:
        command_line.say(
            "the data have no validation split; the source takes one of train by split=mm.SplitByName(validation=0.1)"
        )
    command_line.say(f"train it: mmjax train {path}")
    return path


def _request(name: str) -> Request:
    return Request(path=name)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    subjects = command_line.Subjects("path", dict, _request, others=True, form="PATH", keys=Request)
    return command_line.main(new, "Writes an experiment for your own data.", argv, subjects)


if __name__ == "__main__":
    sys.exit(main())
