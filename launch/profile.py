"""Profile a training step: `python -m launch.profile EXPERIMENT|RUN_DIR [steps=5] [key=value]`.

Real steps on real batches are traced, from a first draw of parameters. The last line on standard output is the path of
profile.json; report.html beside it shows what it found, and trace/ opens in Perfetto and xprof.
`launch.profile compare A B` says what got slower from one profile to the other.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz

from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment, parts, resolve_machine
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.files import local_path, make_folder, write_atomic
from mmjax.formatting import binary_size, fine_duration, percent
from mmjax.hardware.machine import this_machine

from . import command_line, compare_profiles
from .compare_profiles import OF_RUN, PROGRAM
from .compare_profiles import PROFILE as RESULT
from .huge_pages import prefer_huge_pages

if TYPE_CHECKING:
    from mmjax.profiling.profile.profile import Kernel, Profile
    from mmjax.reports.page import Section

PAGE, WRITTEN = "report.html", "program_before.txt"
# So many kernels, parts and buffers are shown.
SHOWN = 25


@chz.chz
class Profiled(Experiment):
    """An experiment, and how much of it is looked at."""

    steps: int = chz.field(default=5, doc="steps that are timed, and as many more that are traced")
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda request: f"profiles/{request.name}"),
        doc="where everything goes",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _some(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


def load(name: str) -> Profiled:
    """The profile of the experiment of that name, or of the one whose run directory that is."""
    place = local_path(name)
    if (place / experiment_file.FILE).is_file() or ("/" in name and place.is_dir()):
        return Profiled(**parts(experiment_file.read(name)), out=str(place / OF_RUN))
    if "/" in name and command_line.own_place(name) is None:
        raise UserError(f"there is no run directory {name}; name one that launch.train has written, or an experiment")
    return Profiled(**parts(command_line.load_experiment(name)))


def make_profile(request: Profiled) -> Path:
    """Profile as asked; returns the path of the result."""
    from mmjax.profiling.profile.profile import profile

    folder, experiment = local_path(request.out), resolve_machine(Experiment(**parts(request)), this_machine())
    with make_folder(folder), make_folder(folder / "trace") as trace:
        found = profile(experiment, request.steps, trace, command_line.say)
    whole = found.json() | {"fingerprint": experiment_file.fingerprint(experiment)}
    for line in _summary(found):
        command_line.say(line)
    write_atomic(folder / PROGRAM, found.program)
    write_atomic(folder / WRITTEN, found.written)
    _write_page(folder, whole, found)
    return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def _summary(found: "Profile") -> list[str]:
    """The profile in a few lines."""
    lines = [
        f"a step takes {found.seconds:.4g} s on {found.devices} x {found.machine}, {found.mfu:.1%} of its peak FLOP/s",
        f"of it {found.exposed:.3g} s nothing but communication, {found.gaps:.3g} s between kernels, and "
        f"{found.waited:.3g} s of waiting for the batch",
        f"memory: {found.memory['peak'] / 2**20:,.0f} MiB a device by the compiler's account"
        + (f", {found.memory['measured peak'] / 2**20:,.0f} MiB measured" if "measured peak" in found.memory else ""),
        "compiled in " + ", ".join(f"{seconds:.1f} s of {phase}" for phase, seconds in found.compile.items()),
    ]
    lines += [f"  {seconds / found.kernel_seconds:6.1%}  {part}" for part, seconds in list(found.by(_part).items())[:8]]
    lines += [f"compiled while steps ran: {reason}" for reason in found.recompiled]
    return lines


def _part(kernel: "Kernel") -> str:
    return kernel.part


def _layer(kernel: "Kernel") -> str:
    return kernel.layer


def _source(kernel: "Kernel") -> str:
    return kernel.source or kernel.opcode


def _write_page(folder: Path, whole: dict[str, Any], found: "Profile") -> None:
    from mmjax.reports.page import write_page

    facts = {
        "step": fine_duration(found.seconds),
        "share of peak FLOP/s": percent(found.mfu),
        "devices": f"{found.devices} x {found.machine}",
        "memory of a device": binary_size(found.memory["peak"]),
        "fingerprint": whole["fingerprint"],
    }
    write_page(folder / PAGE, f"Profile of a step of {found.name}", facts, _sections(whole, found))


def _sections(whole: dict[str, Any], found: "Profile") -> "list[Section]":
    from mmjax.profiling.profile.profile import TOLD
    from mmjax.reports.page import Section, Table
    from mmjax.reports.profile_plots import flame, flame_svg, memory_svg, roofline_svg

    kernels = [
        [
            kernel.name,
            f"{1e3 * kernel.seconds:.3f}",
            f"{kernel.seconds / found.kernel_seconds:.1%}",
            f"{kernel.count:g}",
            f"{kernel.flops / 1e9:.3g}",
            f"{kernel.bytes / 1e6:.3g}",
            f"{kernel.roof:.0%}",
            kernel.part,
            kernel.source,
        ]
        for kernel in found.kernels[:SHOWN]
    ]
    columns = ["kernel", "ms", "share", "runs", "GFLOP", "MB", "of the roof", "part", "source"]
    points = [
        (kernel.flops / kernel.bytes, kernel.flops / kernel.seconds, kernel.seconds / found.kernel_seconds)
        for kernel in found.kernels
        if kernel.flops and kernel.bytes and kernel.seconds
    ]
    times = {
        "computing": found.busy,
        "nothing but communication": found.exposed,
        "between kernels": found.gaps,
        "waiting for the batch": found.waited,
    }
    holders = [[each["source"], f"{each['bytes'] / 2**20:.2f}"] for each in whole["memory_holders"][:SHOWN]]
    return [
        Section(
            "A step",
            "Times of one device, without the profiler the step's, with it those of its parts. Kernels that run beside "
            "each other count once here, and each by itself below.",
            [
                Table(["what", "ms"], [[name, f"{1e3 * seconds:.3f}"] for name, seconds in times.items()]),
                Table(["compiling", "s"], [[phase, f"{seconds:.2f}"] for phase, seconds in found.compile.items()]),
            ],
        ),
        Section(
            "Who called it",
            "Functions of the forward pass with what they and their gradients took.",
            drawings=[flame_svg(flame([(kernel.stack, kernel.seconds) for kernel in found.kernels]))],
        ),
        Section(
            "By part, layer and line",
            "",
            [_shares(found, "part", _part), _shares(found, "layer", _layer), _shares(found, "source", _source)],
        ),
        Section(
            "Kernels",
            f"The {len(kernels)} longest of {len(found.kernels)}; profile.json has all. What caches hold comes faster "
            "than memory's roof, and a roof that was measured beside other work is too low.",
            [Table(columns, kernels)],
        ),
        Section(
            "Under the roof",
            f"Kernels that multiply matrices, as large as their share of the step. The machine does "
            f"{found.peak_flops / 1e9:,.0f} GFLOP/s and {found.peak_bandwidth / 1e9:,.1f} GB/s a device.",
            drawings=[roofline_svg(points, found.peak_flops, found.peak_bandwidth)] if points else [],
        ),
        Section(
            "Memory",
            "Temporaries in the course of the step, and whose they are where they are most; by the estimate that every "
            "buffer lives from its first write to its last read. On a CPU what the process came to hold is measured "
            f"where a step adds {TOLD // 2**20} MiB or more.",
            [
                Table(["what", "MiB"], [[name, f"{size / 2**20:,.2f}"] for name, size in found.memory.items()]),
                Table(["held at the peak, by", "MiB"], holders),
            ],
            drawings=[memory_svg(found.memory_timeline.sizes)],
        ),
        *([Section("Compiled while steps ran", " ".join(found.recompiled))] if found.recompiled else []),
    ]


def _shares(found: "Profile", name: str, key: Any) -> Any:
    from mmjax.reports.page import Table

    rows = [
        [part, f"{1e3 * seconds:.3f}", f"{seconds / found.kernel_seconds:.1%}"]
        for part, seconds in list(found.by(key).items())[:SHOWN]
    ]
    return Table([name, "ms", "share"], rows)


SUBJECTS = command_line.Subjects(
    "experiment",
    command_line.experiment_names,
    load,
    others=True,
    form="EXPERIMENT|RUN_DIR",
    more=command_line.OWN,
    keys=Profiled,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        return compare_profiles.main(words[1:])
    about = "Trace real steps and tell where their time goes; `compare A B`, in place of EXPERIMENT, compares profiles."
    return command_line.main(make_profile, about, words, SUBJECTS)


if __name__ == "__main__":
    prefer_huge_pages()
    sys.exit(main())
