"""What got slower from one profile to another: `python -m launch.profile compare A B`.

The last line on standard output is the path of comparison.json; report.html beside it shows the times by part, layer
and line, and the compiled programs' difference, kernel by kernel, which is also in program.diff.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chz

from mmjax.errors import UserError
from mmjax.files import local_path, make_folder, read_json, read_regular, write_atomic

from . import command_line

RESULT, PAGE, DIFF = "comparison.json", "report.html", "program.diff"
# Of a profile: its folder in a run directory, and its files.
OF_RUN, PROFILE, PROGRAM = "profile", "profile.json", "program.txt"
# What a profile must tell, and each of its kernels.
KEYS = (
    *("step_seconds", "parts", "layers", "kernels", "peak_flops", "peak_bandwidth", "hardware_flops", "peak_bytes"),
    *("compile_seconds", "fingerprint"),
)
KERNEL = ("source", "seconds", "flops", "bytes")
# So many rows and lines are shown.
SHOWN, LINES = 20, 400


@chz.chz
class ProfileComparison:
    """Which profiles are compared, and where what is found goes."""

    before: str = chz.field(doc="a folder that launch.profile has written")
    after: str = chz.field(doc="another")
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(
            lambda request: f"profiles/{'-'.join(map(_name, (request.before, request.after)))}"
        ),
        doc="where everything goes",
    )


def _name(folder: str) -> str:
    """What is profiled there: a run, whose profile lies in its directory, or what the folder is called."""
    place = Path(folder)
    return place.parent.name if place.name == OF_RUN else place.name


def compare(request: ProfileComparison) -> Path:
    """Compare as asked; returns the path of the result."""
    from mmjax.profiling.profile.comparison import by_source, largest_changes, program_difference
    from mmjax.reports.page import Section, Table, write_page

    before, after = (read_profile(folder) for folder in (request.before, request.after))
    ratio = after["step_seconds"] / before["step_seconds"]
    times = {
        "part": largest_changes(before["parts"], after["parts"]),
        "layer": largest_changes(before["layers"], after["layers"]),
        "source": largest_changes(by_source(before["kernels"]), by_source(after["kernels"])),
    }
    diff = program_difference(before["program"], after["program"], (request.before, request.after))
    with make_folder(local_path(request.out)) as folder:
        write_atomic(folder / DIFF, "\n".join(diff) + "\n" if diff else "")
    verdict = _verdict(request, before, after, ratio)
    command_line.say(verdict)
    parts = [row for row in times["part"][:SHOWN] if abs(row[2] - row[1]) > 0.01 * before["step_seconds"]]
    if parts:
        command_line.say("of the traced steps, which take longer than those that are timed:")
    for name, old, new in parts:
        command_line.say(f"  {1e3 * (new - old):+9.3f} ms  {name}: {1e3 * old:.3f} to {1e3 * new:.3f} ms")
    sections = [
        Section(f"By {kind}", "", [Table([kind, "before, ms", "after, ms", "change, ms"], _rows(rows))])
        for kind, rows in times.items()
    ]
    facts = {"memory, MiB": "peak_bytes", "FLOP": "hardware_flops", "compiling, s": "compile_seconds"}
    other = [
        [name, *(f"{_figure(each[key]) / (2**20 if 'MiB' in name else 1):,.2f}" for each in (before, after))]
        for name, key in facts.items()
    ]
    shown = "\n".join(diff[:LINES])
    page = {"step before, s": before["step_seconds"], "after, s": after["step_seconds"], "ratio": ratio}
    parts = [
        Section("In short", verdict, [Table(["what", "before", "after"], other)]),
        *sections,
        Section("The programs", "" if shown else "They are the same.", text=shown),
    ]
    write_page(folder / PAGE, "Two profiles", page | {"fingerprint": after["fingerprint"]}, parts)
    result = {
        "before": request.before,
        "after": request.after,
        "ratio": ratio,
        "low": min(after["steps_seconds"]) / max(before["steps_seconds"]),
        "high": max(after["steps_seconds"]) / min(before["steps_seconds"]),
        "changes": {
            kind: [{"name": name, "before": old, "after": new} for name, old, new in rows]
            for kind, rows in times.items()
        },
        "program_lines_changed": sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in diff),
    }
    return write_atomic(folder / RESULT, json.dumps(result, indent=2) + "\n")


def _verdict(request: ProfileComparison, before: Mapping[str, Any], after: Mapping[str, Any], ratio: float) -> str:
    apart = min(after["steps_seconds"]) > max(before["steps_seconds"]) or max(after["steps_seconds"]) < min(
        before["steps_seconds"]
    )
    sure = "every step of one is" if apart else "not every step of one is"
    word = "slower" if ratio > 1 else "faster"
    return (
        f"{request.after} takes {ratio:.3f} x the time of {request.before} a step; {sure} {word} than all of the other"
    )


def _figure(value: Any) -> float:
    return float(sum(value.values()) if isinstance(value, dict) else value)


def _rows(rows: Sequence[tuple[str, float, float]]) -> list[list[str]]:
    return [
        [name, f"{1e3 * old:.3f}", f"{1e3 * new:.3f}", f"{1e3 * (new - old):+.3f}"] for name, old, new in rows[:SHOWN]
    ]


def read_profile(folder: str) -> dict[str, Any]:
    """A profile with its program. Raises UserError where the folder holds none."""
    place = local_path(folder)
    try:
        found = read_json(place / PROFILE)
        for each, keys in ((found, KEYS), *((kernel, KERNEL) for kernel in found["kernels"])):
            if any(key not in each for key in keys):
                raise ValueError("something is missing")
        return found | {"program": read_regular(place / PROGRAM).decode()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no profile: {PROFILE} or {PROGRAM} is missing or damaged; launch.profile writes both"
        ) from error


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    names = [word for word in argv if "=" not in word and not word.startswith("-")]
    rest = [word for word in argv if word not in names]
    form = "compare BEFORE AFTER"

    def load(_: str) -> ProfileComparison:
        if len(names) != 2:
            raise UserError(f"two profiles are compared, not {len(names)}: {form}")
        return ProfileComparison(before=names[0], after=names[1])

    subjects = command_line.Subjects("profile", dict, load, others=True, form=form)
    words = [" ".join(names), *rest] if names else rest
    return command_line.main(compare, "Say what got slower from one profile to another.", words, subjects)
