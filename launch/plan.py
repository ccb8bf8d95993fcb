"""Plan a run for chips that are not here: `python -m launch.plan EXPERIMENT topology=v5e:16x16`.

The very training step is compiled for the described slices by libtpu (`pip install -e '.[plan]'`), on this machine.
topology=here plans for the devices there are, with calibration=PROFILE, a profile made here, by what their kernels
reach of the peaks; what is compiled for them is kept where a run with the same data_dir finds it.
With search=true meshes and what is computed again are tried, too, by an estimate first; for GPUs (topology=h100:64) the
estimate is all there is.
The last line on standard output is the path of plan.json; report.html beside it shows what the step needs and takes.
"""

import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz

from mmjax.config.experiment import Experiment, parts, resolve_machine
from mmjax.config.experiment_file import fingerprint
from mmjax.errors import UserError
from mmjax.fields import OPERATIONAL
from mmjax.files import local_path, make_folder, write_atomic
from mmjax.formatting import binary_size, count, fine_duration, number, percent
from mmjax.hardware.chips import CHIPS, GPUS, TPUS, Chip
from mmjax.hardware.machine import machine_of, this_machine
from mmjax.sharding.rules import MESH_AXES
from mmjax.sharding.topology import HERE, Topology, parse_topology

from . import command_line
from .compare_profiles import read_profile

if TYPE_CHECKING:
    from mmjax.reports.page import Section

RESULT, PAGE = "plan.json", "report.html"
# So many collectives and places in the source are shown.
SHOWN = 16
FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "predicted_step_seconds": ("step", fine_duration),
    "predicted_mfu": ("share of peak FLOP/s", percent),
    "predicted_examples_per_second": ("examples per second", count),
    "predicted_tokens_per_second": ("tokens per second", count),
    "predicted_cost": ("cost of all steps", number),
}

COMPILED = (
    "Every instruction takes what the chip's peak FLOP/s or its memory's bandwidth make of it, in the compiler's "
    "order; communication beside other work counts where it is waited for. Nothing is faster than this; a real step "
    "is slower."
)
CALIBRATED = (
    "Every instruction takes what the rates that a profile's kernels reached here make of it, in the compiler's order."
)
MEASURED = (
    "Every instruction takes what the rates that large products and copies reached here, a moment ago, make of it, in "
    "the compiler's order: a guide. With calibration=PROFILE it is by what a step's kernels reach."
)
ESTIMATED = (
    "An estimate from the step's types: what its products take at 70% of the chip's peak FLOP/s, and the way of "
    "weights, beside them, or of activations. Nothing was compiled. Of a GPU's memory JAX takes three quarters, if "
    "XLA_PYTHON_CLIENT_MEM_FRACTION says nothing else."
)
ABOUT = {"peak": COMPILED, "calibrated": CALIBRATED, "measured": MEASURED}
BY = {"peak": "at best", "calibrated": "by the calibration", "measured": "by rates measured here"}
ESTIMATES = {
    "compute": "computing",
    "memory": "reading and writing memory, beside that",
    "beside": "communication that computing can hide",
    "waited": "communication that is waited for",
}


@chz.chz
class Planned(Experiment):
    """An experiment and what it is to run on."""

    topology: str = chz.field(
        default="v5e:16x16",
        doc=f"a slice of TPUs ({', '.join(chip.name for chip in TPUS)}) and its chips, as in v5e:16x16, a kind of GPU "
        f"({', '.join(chip.name for chip in GPUS)}) and how many, as in h100:64, or here",
    )
    calibration: str | None = chz.field(
        default=None,
        doc="a folder that launch.profile wrote on this machine, of this experiment or one like it, for topology=here",
    )
    slices: int = chz.field(default=1, doc="how many of them, joined by the data centre's network")
    search: bool = chz.field(default=False, doc="whether to look for the best mesh, rules and rematerialisation")
    compiled: int = chz.field(
        default=4, doc="how many of the most promising candidates a search compiles, in addition to the request"
    )
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
        if self.compiled < 1:
            raise ValueError(f"compiled={self.compiled} must be at least 1")
        if self.calibration is not None and self.topology != HERE:
            raise ValueError(f"calibration={self.calibration} must be with topology=here, not {self.topology}")
        if self.search and self.topology == HERE:
            raise ValueError("search=true must be for a described topology: topology=here plans the mesh it is given")
        if self.price is not None and self.price < 0:
            raise ValueError(f"price={self.price} must not be negative")


def load(name: str) -> Planned:
    """The plan of an experiment by its name, with default keys."""
    return Planned(**parts(command_line.load_experiment(name)))


def make_plan(request: Planned) -> Path:
    """Plan as asked; returns the path of the result."""
    kind, _, count = request.topology.partition(":")
    if kind != HERE and kind not in CHIPS:
        known = [", ".join(chip.name for chip in chips) for chips in (TPUS, GPUS)]
        raise UserError(
            f"topology={request.topology}: there is no {kind}; there are TPUs ({known[0]}), as in v5e:16x16, GPUs "
            f"({known[1]}), as in h100:64, and here"
        )
    gpu = kind in {chip.name for chip in GPUS}
    if gpu and not (count.isdigit() and int(count) > 0):
        raise UserError(f"topology={request.topology}: say how many GPUs, as in {kind}:64")
    if gpu and request.slices > 1:
        raise UserError(f"slices={request.slices} is of TPUs; of GPUs say how many there are, as in {kind}:64")
    machine = this_machine() if kind == HERE else machine_of("gpu" if gpu else "tpu")
    experiment = resolve_machine(Experiment(**parts(request)), machine)
    topology = None if gpu else parse_topology(request.topology, request.slices)
    if topology is not None:
        topology.check()
    with make_folder(local_path(request.out)) as folder:
        whole = (
            _gpus(request, experiment, CHIPS[kind], int(count))
            if topology is None
            else _compiled(request, experiment, topology)
        )
    whole["fingerprint"] = fingerprint(experiment)
    if request.price is not None and "predicted_step_seconds" in whole:
        chip_hours = whole["chips"] * whole["predicted_step_seconds"] / 3600
        whole["predicted_cost_per_1000_steps"] = 1000 * chip_hours * request.price
        whole["predicted_cost"] = experiment.train.steps * chip_hours * request.price
    whole["steps"] = experiment.train.steps
    for line in _summary(whole):
        command_line.say(line)
    _write_page(folder, whole)
    return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def _compiled(request: Planned, experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """The plan of the experiment, or of the best that a search finds, compiled."""
    from mmjax.compilation import cache_compilations
    from mmjax.profiling.plan.advice import advise
    from mmjax.profiling.plan.devices import MeasuredRates, chip_of_topology
    from mmjax.profiling.plan.plan import plan, usable_bytes

    reached = None if request.calibration is None else MeasuredRates.of(read_profile(request.calibration))
    if topology.generation == HERE:  # what is compiled for others JAX can keep, but not read again without them
        cache_compilations(request.data_dir)
    if not request.search:
        minutes = "" if topology.generation == HERE else ", which takes minutes"
        command_line.say(f"compiling {request.name} for {topology.name}{minutes}")
        found = plan(experiment, topology, reached)
        rates = {"rates": "calibrated" if reached else "measured" if topology.generation == HERE else "peak"}
        return found.json() | rates | {"advice": None if found.fits else advise(experiment, found)}
    from mmjax.profiling.plan.search import compile_all, most_promising, search

    devices = len(topology.devices())
    chip = chip_of_topology(topology, devices)
    candidates = search(experiment, chip, devices, request.slices, usable_bytes(chip), command_line.say)
    if not candidates:
        raise UserError(f"no mesh of {devices} devices divides {request.name}; change train.batch_size or the topology")
    best = most_promising(candidates, experiment, devices, request.compiled)
    command_line.say(f"compiling the {len(best)} most promising of {len(candidates)}, which takes minutes")
    compiled = compile_all(best, topology, command_line.say)
    rows = [candidate.json() | _outcome(plan) for candidate, plan in compiled]
    rows += [candidate.json() for candidate in candidates if candidate not in best][: SHOWN - len(best)]
    return compiled[0][1] | {"rates": "peak", "advice": None, "candidates": rows}


def _outcome(plan: dict[str, Any]) -> dict[str, Any]:
    found = {"fits": plan["fits"], "peak_bytes": plan["hbm_bytes"]["peak"]}
    return found | {name: plan[name] for name in ("predicted_step_seconds", "predicted_mfu") if name in plan}


def _gpus(request: Planned, experiment: Experiment, chip: Chip, count: int) -> dict[str, Any]:
    """The plan of the experiment, or of the best that a search finds, by the estimate."""
    from mmjax.profiling.plan.advice import advise_estimated
    from mmjax.profiling.plan.cost_model import check_mesh, cost_model
    from mmjax.profiling.plan.plan import NODE, estimated_plan, usable_bytes
    from mmjax.profiling.plan.search import search

    rows = []
    if request.search:
        candidates = search(experiment, chip, count, 1, usable_bytes(chip), command_line.say, fast_group=NODE)
        if not candidates:
            raise UserError(f"no mesh of {count} GPUs divides {request.name}; change train.batch_size or their number")
        experiment, rows = candidates[0].experiment, [candidate.json() for candidate in candidates[:SHOWN]]
    sizes = dict(zip(MESH_AXES, experiment.mesh.resolve(count), strict=True))
    check_mesh(experiment, sizes)
    whole = estimated_plan(experiment, cost_model(experiment), sizes, chip)
    advice = None if whole["fits"] else advise_estimated(experiment, whole["hbm_bytes"], sizes, chip)
    return whole | {"advice": advice} | ({"candidates": rows} if rows else {})


def _summary(whole: dict[str, Any]) -> list[str]:
    """The plan in a few lines."""
    peak, limit = (size / 2**30 for size in (whole["hbm_bytes"]["peak"], whole["hbm_limit_bytes"]))
    mesh = " ".join(f"{axis}={size}" for axis, size in whole["mesh"].items() if size > 1) or "one device"
    chips = "1 chip" if whole["chips"] == 1 else f"{whole['chips']:,} chips"
    lines = [
        f"{whole['parameters'] / 1e6:,.1f} M parameters on {chips}, {mesh}",
        f"memory: {peak:.2f} GiB of {limit:.2f} GiB a device: it {'fits' if whole['fits'] else 'does not fit'}",
    ]
    if "predicted_step_seconds" in whole:
        seconds, analytic = whole["predicted_step_seconds"], "analytic" in whole
        lines.append(
            f"time: {seconds:.4g} s a step {'by the estimate' if analytic else BY[whole['rates']]}, "
            f"{whole['predicted_mfu']:.1%} of the chips' peak FLOP/s, "
            + (
                f"{whole['predicted_examples_per_second']:,.0f} examples/s"
                if analytic
                else f"{whole['predicted_tokens_per_second']:,.0f} tokens/s"
            )
        )
        if not analytic:
            shares = whole["roofline_seconds"].items()
            lines.append("of it " + ", ".join(f"{kind} {part / seconds:.0%}" for kind, part in shares))
    if "candidates" in whole:
        lines.append("the best of the search: " + " ".join(whole["candidates"][0]["overrides"]))
    if whole["advice"]:
        lines.append(whole["advice"])
    if "predicted_cost" in whole:
        thousand = whole["predicted_cost_per_1000_steps"]
        lines.append(
            f"cost: {number(whole['predicted_cost'])} for its {whole['steps']:,} steps, {number(thousand)} for 1,000"
        )
    return lines


def _write_page(folder: Path, whole: dict[str, Any]) -> None:
    from mmjax.reports.page import write_page

    peak, limit = (binary_size(size) for size in (whole["hbm_bytes"]["peak"], whole["hbm_limit_bytes"]))
    facts = {
        "fits": "yes" if whole["fits"] else "no",
        "memory of a device": f"{peak} of {limit}",
        "parameters": count(whole["parameters"]),
        "chips": whole["chips"],
        **{title: shown(whole[key]) for key, (title, shown) in FACTS.items() if key in whole},
        "fingerprint": whole["fingerprint"],
    }
    write_page(folder / PAGE, f"Plan of {whole['experiment']} on {whole['topology']}", facts, _sections(whole))


def _sections(whole: dict[str, Any]) -> "list[Section]":
    from mmjax.reports.page import Section, Table

    analytic, sizes = "analytic" in whole, dict(whole["hbm_bytes"])
    if not analytic:
        sizes["to be kept for the backward pass, as written"] = sizes.pop("activations")
    memory = [[kind, binary_size(size)] for kind, size in sizes.items() if size]
    held = Section("Memory of a device", whole["advice"] or "", [Table(["what", "size"], memory)])
    if "predicted_step_seconds" not in whole:
        return [held, *_candidates(whole)]
    seconds, kinds = whole["predicted_step_seconds"], whole["roofline_seconds"].items()
    between = ", between nodes" if analytic else ", between slices"
    if analytic:
        times = Table(["what", "time"], [[ESTIMATES[kind], fine_duration(part)] for kind, part in kinds])
    else:
        rows = [[kind, fine_duration(part), percent(part / seconds)] for kind, part in kinds]
        times = Table(["held up by", "time", "share"], rows)
    talk = [
        [
            f"{each['kind']} over {each['axis'] or 'nothing'}" + (between if each["crosses_slices"] else ""),
            f"{each['bytes'] / 1e6:,.4g}",
            f"{each['count']:,}",
            "yes" if each["overlaps"] else "no",
            each["path"],
        ]
        for each in whole["collectives"][:SHOWN]
    ]
    sources = whole["source_seconds"]
    places = [[name, fine_duration(part)] for name, part in list(sources.items())[:SHOWN]]
    where = Section("Where the time goes", f"By line{_cut(sources)}.", [Table(["source", "time"], places)])
    flops = [
        ["the model's, three forward passes", f"{whole['model_flops'] / 1e12:,.4g}"],
        ["the step's as written, with what is calculated again", f"{whole['step_flops'] / 1e12:,.4g}"],
        [
            f"{'all' if analytic else 'all compiled'}, what devices repeat counted",
            f"{whole['hardware_flops'] / 1e12:,.4g}",
        ],
    ]
    about = ESTIMATED if analytic else ABOUT[whole["rates"]]
    title = "A step at best" if not analytic and whole["rates"] == "peak" else "A step"
    return [
        held,
        *_candidates(whole),
        Section(title, about, [times, Table(["TFLOP", ""], flops)]),
        Section(
            "Communication",
            f"What a device sends in a step{_cut(whole['collectives'])}.",
            [Table(["collective", "MB", "times", "beside work", "asked for by"], talk)],
        ),
        *([where] if places else []),
    ]


def _cut(rows: Collection[Any]) -> str:
    """A line where not all rows are shown."""
    return f", the first {SHOWN} of {len(rows)}: {RESULT} has all" if len(rows) > SHOWN else ""


def _candidates(whole: dict[str, Any]) -> "list[Section]":
    from mmjax.reports.page import Section, Table

    def shown(row: dict[str, Any], name: str, scale: float) -> str:
        return f"{row[name] / scale:.4g}" if name in row else ""

    rows = [
        [
            " ".join(row["overrides"]),
            *(shown(row, name, 1) for name in ("estimated_step_seconds", "predicted_step_seconds", "predicted_mfu")),
            *(shown(row, name, 2**30) for name in ("estimated_peak_bytes", "peak_bytes")),
            "yes" if row.get("fits", row["estimated_to_fit"]) else "no",
        ]
        for row in whole.get("candidates", [])
    ]
    columns = ["overrides", "estimated, s", "compiled, s", "MFU", "estimated, GiB", "compiled, GiB", "fits"]
    return [Section("The search", "The quickest that fits first.", [Table(columns, rows)])] if rows else []


SUBJECTS = command_line.Subjects(
    "experiment", command_line.experiment_names, load, others=True, more=command_line.OWN, keys=Planned
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(
        make_plan, "Will it fit, how fast, at what price: on TPUs that are not here.", argv, SUBJECTS
    )


if __name__ == "__main__":
    sys.exit(main())
