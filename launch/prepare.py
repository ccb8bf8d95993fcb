"""Builds a data set: `python -m launch.prepare SOURCE key=value ...`.

A field of the source that is a choice and is not given stands for all of its choices: `av_digits` builds all variants.
`prepare convert PATH out=DIR` writes data of your own, or a source by its name, as ArrayRecord files. The last line on
standard output is the folder of what was built.
"""

import itertools
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz

from mmjax.buckets import is_remote
from mmjax.data.formats import Tfds
from mmjax.data.sources import TABLE
from mmjax.data.sources.base import Source, source_name

from . import command_line


@chz.chz
class Request:
    """What to build from; for each source there is a subclass that has the source's own fields too."""

    data_dir: str = chz.field(default="~/.cache/mmjax", doc="where data sets are built")
    manual_dir: str | None = chz.field(default=None, doc="where the raw files are; without it they are downloaded")


def request_class(source: type[Source]) -> type[Request]:
    """The request for a source: its fields, those that are choices being None for all of them."""
    annotations: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, field in chz.chz_fields(source).items():
        kind: Any = field.x_type
        is_choice = typing.get_origin(kind) is typing.Literal
        annotations[name] = kind | None if is_choice else kind
        doc = f"{field._doc}; None for each of them" if is_choice else field._doc  # chz has no public name for it
        fields[name] = chz.field(default=None if is_choice else field._default, doc=doc)
    namespace = {"__annotations__": annotations, "__module__": __name__, "__doc__": source.__doc__, **fields}
    return chz.chz(type(f"{source.__name__}Request", (Request,), namespace))


REQUESTS = {request_class(source): source for source in (*TABLE.values(), Tfds)}
SOURCES = command_line.Subjects(
    "source",
    lambda: {source_name(source): (source.__doc__ or "").partition("\n")[0] for source in REQUESTS.values()},
    lambda name: next(request for request, source in REQUESTS.items() if source_name(source) == name),
)


def prepare(request: Request) -> Path:
    """Builds each variant that is asked for; returns the folder they lie in."""
    source = REQUESTS[type(request)]
    options = {}
    for name, field in chz.chz_fields(source).items():
        value = getattr(request, name)
        options[name] = typing.get_args(field.x_type) if value is None else (value,)
    variants = [source(**dict(zip(options, values, strict=True))) for values in itertools.product(*options.values())]
    folders = [variant.prepare(request.data_dir, request.manual_dir) for variant in variants]
    return Path(os.path.commonpath(folders))


@chz.chz
class Conversion:
    """A conversion to ArrayRecord."""

    source: Source = chz.field(doc="what is converted")
    out: str = chz.field(doc="the folder to write")
    data_dir: str = chz.field(default="~/.cache/mmjax", doc="where prepared data sets and indexes are")


def _conversion(name: str) -> Conversion:
    """The source of a name, or the one that reads a path."""
    from mmjax.data.formats.recognise import recognise

    named = {source_name(cls): cls for cls in TABLE.values()}
    return Conversion(
        source=named[name]() if name in named else recognise(name),
        out=f"{Path(name).name if is_remote(name) else name}-converted",
    )


def convert(request: Conversion) -> Path:
    """Writes every split; returns the folder."""
    from mmjax.data.formats import array_record
    from mmjax.data.formats.recognise import find_columns

    source = find_columns(request.source, request.data_dir)
    return array_record.convert(source, request.data_dir, request.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["convert"]:
        subjects = command_line.Subjects("path", dict, _conversion, others=True, form="convert PATH")
        return command_line.main(convert, "Writes a data set as ArrayRecord files.", words[1:], subjects)
    return command_line.main(prepare, "Builds a data set, unless it is there.", argv, SOURCES)


if __name__ == "__main__":
    sys.exit(main())
