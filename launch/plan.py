"""Plan a run for TPUs that are not here: `python -m launch.plan EXPERIMENT topology=v5e:16x16 [slices=4] [key=value]`.

The very training step is compiled for the described slices by libtpu (`pip install -e '.[plan]'`), on this machine.
The last line on standard output is the path of plan.json; report.html beside it shows what the step needs and takes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz

from launch import command_line
from mmjax.config import Experiment, fingerprint, parts
from mmjax.fields import OPERATIONAL
from mmjax.files import explained, write_atomic
from mmjax.units import number

if TYPE_CHECKING:
    from mmjax.evaluation.findings import Section
    from mmjax.profiling.plan import Plan

RESULT, PAGE = "plan.json", "report.html"
# So many collectives and places in the source are shown.
SHOWN = 16
FACTS = {
    "predicted_step_seconds": "step at best, s",
    "predicted_mfu": "share of peak FLOP/s",
    "predicted_tokens_per_second": "tokens a second",
    "predicted_cost": "cost",
}


@chz.chz
class Planned(Experiment):
    """An experiment and what it is to run on."""

    topology: str = chz.field(default="v5e:16x16", doc="a slice of TPUs: v4, v5e, v5p, v6e or tpu7x, and its chips")
    slices: int = chz.field(default=1, doc="how many of them, joined by the data centre's network")
    price: float | None = chz.field(default=None, doc="of a chip for an hour, in whatever money")
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(
            lambda request: f"plans/{request.name}-{request.slices}-{request.topology.replace(':', '-')}"
        ),
        doc="where everything goes",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _some(self) -> None:
        if self.slices < 1:
            raise ValueError(f"slices={self.slices} must be at least 1")
        if self.price is not None and self.price < 0:
            raise ValueError(f"price={self.price} must not be negative")


def load(name: str) -> Planned:
    """The plan of the experiment of that name, nothing said yet."""
    return Planned(**parts(command_line.load_experiment(name)))


def make_plan(request: Planned) -> Path:
    """Plan as asked; returns the path of the result."""
    from mmjax.sharding.topology import parse_topology

    topology = parse_topology(request.topology, request.slices)
    folder = Path(request.out).expanduser()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    from mmjax.profiling.plan import mend, plan

    command_line.say(f"compiling {request.name} for {topology.name}, which takes minutes")
    experiment = Experiment(**parts(request))
    found = plan(experiment, topology)
    whole = found.json() | {"fingerprint": fingerprint(experiment)}
    if request.price is not None and found.roofline is not None:
        chip_hours = topology.chips * found.roofline.seconds / 3600
        whole["predicted_cost_per_1000_steps"] = 1000 * chip_hours * request.price
        whole["predicted_cost"] = experiment.train.steps * chip_hours * request.price
    advice = None if found.fits else mend(experiment, found)
    whole["advice"] = advice
    for line in _summary(whole):
        command_line.say(line)
    _write_page(folder, whole, found)
    return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def _summary(whole: dict[str, Any]) -> list[str]:
    """The plan in a few lines."""
    peak, limit = (size / 2**30 for size in (whole["hbm_bytes"]["peak"], whole["hbm_limit_bytes"]))
    mesh = " ".join(f"{axis}={size}" for axis, size in whole["mesh"].items() if size > 1) or "one device"
    lines = [
        f"{whole['parameters'] / 1e6:,.1f} M parameters on {whole['chips']} chips, {mesh}",
        f"memory: {peak:.2f} GiB of {limit:.2f} GiB a device: it {'fits' if whole['fits'] else 'does not fit'}",
    ]
    if "predicted_step_seconds" in whole:
        seconds = whole["predicted_step_seconds"]
        lines += [
            f"time: {seconds:.4g} s a step at best, {whole['predicted_mfu']:.1%} of the chips' peak FLOP/s, "
            f"{whole['predicted_tokens_per_second']:,.0f} tokens/s",
            "of it " + ", ".join(f"{kind} {part / seconds:.0%}" for kind, part in whole["roofline_seconds"].items()),
        ]
    if whole["advice"]:
        lines.append(whole["advice"])
    if "predicted_cost" in whole:
        thousand = whole["predicted_cost_per_1000_steps"]
        lines.append(f"cost: {number(whole['predicted_cost'])}, {number(thousand)} for 1,000 steps")
    return lines


def _write_page(folder: Path, whole: dict[str, Any], found: "Plan") -> None:
    from mmjax.evaluation.page import render

    page = render(
        "evaluation.html",
        title=f"{whole['experiment']} on {whole['topology']}",
        fingerprint=whole["fingerprint"],
        facts={
            "fits": "yes" if whole["fits"] else "no",
            "memory of a device, GiB": whole["hbm_bytes"]["peak"] / 2**30,
            "of, GiB": whole["hbm_limit_bytes"] / 2**30,
            "parameters": whole["parameters"],
            "chips": whole["chips"],
        }
        | {title: whole[key] for key, title in FACTS.items() if key in whole},
        groups={},
        panels=[],
        panels_left_out=[],
        sections=[(part.title, part) for part in _sections(whole, found)],
    )
    write_atomic(folder / PAGE, page)


def _sections(whole: dict[str, Any], found: "Plan") -> "list[Section]":
    from mmjax.evaluation.findings import Section, Table

    memory = [[kind, f"{size / 2**30:.3f}"] for kind, size in whole["hbm_bytes"].items()]
    held = Section("Memory of a device", whole["advice"] or "", [Table(["what", "GiB"], memory)])
    if found.roofline is None:
        return [held]
    seconds = whole["predicted_step_seconds"]
    times = [[kind, f"{part:.4f}", f"{part / seconds:.1%}"] for kind, part in whole["roofline_seconds"].items()]
    talk = [
        [
            f"{each['kind']} over {each['axis'] or 'nothing'}" + (", between slices" if each["crosses_slices"] else ""),
            f"{each['bytes'] / 1e6:,.1f}",
            f"{each['count']:,}",
            "yes" if each["overlaps"] else "no",
            each["path"],
        ]
        for each in whole["collectives"][:SHOWN]
    ]
    places = sorted(found.roofline.parts.items(), key=lambda item: -item[1])[:SHOWN]
    flops = [
        ["the model's", f"{whole['model_flops'] / 1e12:,.2f}"],
        ["the step's as written, with what is calculated again", f"{whole['step_flops'] / 1e12:,.2f}"],
        ["the compiled step's", f"{whole['hardware_flops'] / 1e12:,.2f}"],
    ]
    about = (
        "Every instruction takes what the chip's peak FLOP/s or its memory's bandwidth make of it, in the compiler's "
        "order; communication beside other work counts where it is waited for. Nothing is faster than "
        "this; a real step is slower."
    )
    return [
        held,
        Section("A step at best", about, [Table(["held up by", "s", "share"], times), Table(["TFLOP", ""], flops)]),
        Section(
            "Communication",
            "What a device sends in a step.",
            [Table(["collective", "MB", "times", "beside work", "asked for by"], talk)],
        ),
        Section("Where the time goes", "", [Table(["source", "s"], [[name, f"{part:.4f}"] for name, part in places])]),
    ]


SUBJECTS = command_line.Subjects("experiment", command_line.experiment_names, load)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(
        make_plan, "Will it fit, how fast, at what price: on TPUs that are not here.", argv, SUBJECTS
    )


if __name__ == "__main__":
    sys.exit(main())
