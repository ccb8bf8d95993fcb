"""The Python stack of each HLO instruction: the functions that traced it."""

import dataclasses
import functools
import re
from collections.abc import Iterator

PACKAGE = "mmjax/"


@dataclasses.dataclass(frozen=True)
class Frame:
    """A line of a function; `file` is relative to the package for its own files."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Frames:
    """The tables of files, functions and lines in the header of an HLO text."""

    def __init__(self, text: str):
        head = text[: text.find("\n%")] if "\n%" in text else text
        self.files, self.functions = _table(head, "FileNames"), _table(head, "FunctionNames")
        self.locations, self.frames = _table(head, "FileLocations"), _table(head, "StackFrames")

    @functools.cache  # noqa: B019  it lives as long as the program that it is of
    def stack(self, number: int) -> tuple[Frame, ...]:
        """The stack frames of frame `id` that lie in the package, outermost first; may be empty."""
        found = list(self._upwards(number))[::-1]
        own = [frame for frame in found if frame.file.startswith(PACKAGE)]
        if not own:
            return ()
        # A function that was traced by itself has the way to it in front, once for each time it was passed on.
        again = next((frame for frame in own if found.count(frame) > 1), own[0])
        first = max(place for place, frame in enumerate(found) if frame == again)
        return tuple(found[first:])

    def _upwards(self, number: int) -> Iterator[Frame]:
        while number in self.frames:
            location, above = _numbers(self.frames[number], "file_location_id", "parent_frame_id")
            file, function, line = _numbers(
                self.locations.get(location, ""), "file_name_id", "function_name_id", "line"
            )
            yield Frame(_short(self.files.get(file, "")), line, self.functions.get(function, "").strip('"'))
            number = above - 1  # XLA counts from one, and calls what has nothing above it its own parent


def _table(text: str, name: str) -> dict[int, str]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n?)*)", text, re.MULTILINE)
    rows = found.group(1).splitlines() if found else []
    return {int(number): rest for number, _, rest in (row.partition(" ") for row in rows)}


def _numbers(row: str, *names: str) -> list[int]:
    found = (re.search(rf"\b{name}=(\d+)", row) for name in names)
    return [int(each.group(1)) if each else 0 for each in found]


def _short(file: str) -> str:
    _, package, rest = file.strip('"').rpartition(f"/{PACKAGE}")
    return PACKAGE + rest if package else file.strip('"')
