"""Profiles of real training steps: traced time by kernel, source location, layer and modality."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import DevicePrefetcher, rows_of
from mmjax.data.loader import Loader
from mmjax.hardware.flops import peak_bandwidth, peak_flops
from mmjax.profiling.hlo import HloModule
from mmjax.profiling.instruction import Instruction
from mmjax.profiling.profile import trace
from mmjax.profiling.profile.memory import Timeline, timeline
from mmjax.profiling.profile.rss import RssGrowth, watch_rss
from mmjax.sharding.mesh import choose_rules
from mmjax.training.train_program import TrainProgram

# Steps that are run before the one whose memory is measured, and those that are timed: the first ones find memory that
# is not there yet.
WARM = 2
# A process's memory fluctuates by some megabytes: a smaller step cannot be distinguished from that.
TOLD = 2**26
# Number of the largest buffers listed at the memory peak.
SHOWN = 30
# What holds other instructions, and takes what they take.
HOLDERS = ("while", "conditional", "call")
HERE = "mmjax/profiling/profile/profile.py"
PART = re.compile(r"\b(encoders/\w+|fusion|outputs/\w+|optimizer)\b")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction of the program: its time per step on one device, and its efficiency.

    `roof` is the share of the tighter of its two limits, arithmetic and memory, that it reaches; `flops` and `bytes`
    are those of all its runs in a step.
    """

    name: str
    opcode: str
    seconds: float
    count: float
    flops: float
    bytes: float
    roof: float
    source: str
    part: str
    layer: str
    stack: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Profile:
    """The time and memory of a step on one device, in seconds and bytes.

    `busy` is the time when a device computes, `exposed` when it only communicates, `gaps` when it is idle, and `waited`
    a step's wait for its batch. `compile` is by phase; `recompiled` lists what was compiled while steps ran, and why.
    `written` is the program before the compiler's optimisations, `program` after them.
    """

    name: str
    machine: str
    devices: int
    step_seconds: Sequence[float]
    kernels: Sequence[Kernel]
    busy: float
    exposed: float
    gaps: float
    waited: float
    compile: Mapping[str, float]
    recompiled: Sequence[str]
    model_flops: int
    hardware_flops: int
    peak_flops: float
    peak_bandwidth: float
    memory: Mapping[str, int]
    memory_timeline: Timeline
    module: HloModule
    program: str
    written: str

    @property
    def seconds(self) -> float:
        """The median step, without the profiler."""
        return statistics.median(self.step_seconds)

    @property
    def mfu(self) -> float:
        return self.model_flops / self.seconds / (self.peak_flops * self.devices)

    @property
    def kernel_seconds(self) -> float:
        """Seconds of all kernels; more than `busy` where they overlap."""
        return sum(kernel.seconds for kernel in self.kernels)

    def by(self, key: Callable[[Kernel], str]) -> dict[str, float]:
        """Seconds of kernels grouped by a key, the most first."""
        found: dict[str, float] = collections.defaultdict(float)
        for kernel in self.kernels:
            found[key(kernel)] += kernel.seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def json(self) -> dict[str, Any]:
        """The content of profile.json."""
        held: dict[str, int] = collections.defaultdict(int)
        for each, size in self.memory_timeline.holders:
            held[self.module.source(each) or each.opcode] += size
        kept = [{"bytes": size, "source": source} for source, size in sorted(held.items(), key=lambda item: -item[1])]
        return {
            "experiment": self.name,
            "machine": self.machine,
            "devices": self.devices,
            "step_seconds": self.seconds,
            "steps_seconds": list(self.step_seconds),
            "mfu": self.mfu,
            "model_flops": self.model_flops,
            "hardware_flops": self.hardware_flops,
            "peak_flops": self.peak_flops,
            "peak_bandwidth": self.peak_bandwidth,
            "busy_seconds": self.busy,
            "exposed_communication_seconds": self.exposed,
            "host_gap_seconds": self.gaps,
            "waited_for_data_seconds": self.waited,
            "compile_seconds": dict(self.compile),
            "recompiled": list(self.recompiled),
            "peak_bytes": self.memory["peak"],
            "memory_bytes": dict(self.memory),
            "memory_timeline": list(self.memory_timeline.sizes),
            "memory_holders": kept[:SHOWN],
            "parts": self.by(lambda kernel: kernel.part),
            "layers": self.by(lambda kernel: kernel.layer),
            "kernels": [
                {name: value for name, value in dataclasses.asdict(kernel).items() if name != "stack"}
                for kernel in self.kernels
            ],
        }


def profile(experiment: Experiment, steps: int, folder: Path, say: Callable[[str], None]) -> Profile:
    """Compiles the experiment's training step, runs it on its data from new parameters, and traces it.

    The trace stays under `folder`, for Perfetto and xprof. Raises UserError where the experiment cannot run here.
    """
    mesh = experiment.mesh.build()
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        rules = choose_rules(experiment.rules, mesh)
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        data = experiment.data.fit_tokenizers(experiment.data_dir)
        data.open(experiment.data_dir, "train")
        data.check_fields(experiment.data_dir)
        data = data.fit_packing(experiment.data_dir, experiment.train.batch_size, experiment.train.steps)
        flops, bandwidth = peak_flops(experiment.model.dtype)[0], peak_bandwidth()
        program = TrainProgram(experiment, data, rules)
        size = experiment.train.batch_size
        loader = Loader(data, experiment.data_dir, "train", size, seed=experiment.seed, rows=rows_of(sharding, size))
        feed = resources.enter_context(DevicePrefetcher(loader, sharding, 0, WARM + 1 + 2 * steps))
        say("compiling the step")
        draw_key, key = jax.random.split(jax.random.key(experiment.seed))
        began = time.perf_counter()
        state = jax.block_until_ready(program.init_from_key(draw_key))
        phases = {"drawing parameters": time.perf_counter() - began}
        lowered, compiled = _compile(program, state, key, phases)
        text = compiled.as_text() or ""
        module = HloModule(text)
        say(f"running {WARM + 1 + 2 * steps} steps: {WARM} to warm up, 1 for its memory, {steps} timed, {steps} traced")
        run = functools.partial(_run, compiled, feed, key)
        state, _ = run(state, WARM)
        held = sum(shard.data.nbytes for array in jax.tree.leaves(state) for shard in array.addressable_shards)
        with watch_rss() as growth:
            state, _ = run(state, 1)
        feed.waited = 0.0
        state, seconds = run(state, steps)
        waited = feed.waited / steps
        with watch_compilations() as recompiled, trace.record(folder):
            run(state, steps)
        memory: Any = compiled.memory_analysis()
        model_flops = program.model_flops
    events = trace.read(folder, module.name)
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    measured = _measured(held, growth, mesh.size)
    memory_timeline = timeline(module)
    return Profile(
        name=experiment.name,
        machine=jax.local_devices()[0].device_kind,
        devices=mesh.size,
        step_seconds=seconds,
        kernels=kernels(module, events, steps, flops, bandwidth),
        **_times(module, events, steps),
        waited=waited,
        compile=phases,
        recompiled=recompiled,
        model_flops=model_flops,
        hardware_flops=module.flops * mesh.size,
        peak_flops=flops,
        peak_bandwidth=bandwidth,
        memory=parts
        | {"peak": sum(parts.values()), "estimated temporaries": memory_timeline.peak}
        | ({} if measured is None else {"measured peak": measured}),
        memory_timeline=memory_timeline,
        module=module,
        program=text,
        written=lowered.as_text(dialect="hlo"),
    )


def _measured(held: int, growth: RssGrowth, devices: int) -> int | None:
    """Peak bytes of a device: as it reports them, otherwise its share of the process's growth."""
    counted = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if counted is not None or growth.bytes is None or growth.bytes < TOLD or jax.default_backend() != "cpu":
        return counted
    return (held + growth.bytes) // devices


def _compile(
    program: TrainProgram, state: Any, key: jax.Array, phases: dict[str, float]
) -> tuple[jax.stages.Lowered, jax.stages.Compiled]:
    """The compiled step; adds the seconds of each stage to `phases`."""
    began = time.perf_counter()
    traced = program.jit_step().trace(state, [program.batch_shapes()], key)
    phases["tracing"] = time.perf_counter() - began
    began = time.perf_counter()
    lowered = traced.lower()
    phases["lowering"] = time.perf_counter() - began
    began = time.perf_counter()
    compiled = lowered.compile()
    phases["compiling"] = time.perf_counter() - began
    return lowered, compiled


def _run(
    compiled: jax.stages.Compiled, feed: DevicePrefetcher, key: jax.Array, state: Any, steps: int
) -> tuple[Any, list[float]]:
    """Runs steps as training does, the next dispatched before one is done; also returns their seconds."""
    ends, before = [time.perf_counter()], None
    for _ in range(steps):
        state, metrics = compiled(state, [next(feed).batch], key)
        if before is not None:
            jax.block_until_ready(before)
            ends.append(time.perf_counter())
        before = metrics
    jax.block_until_ready((state, before))
    ends.append(time.perf_counter())
    return state, [end - begin for begin, end in itertools.pairwise(ends)]


@contextlib.contextmanager
def watch_compilations() -> Iterator[list[str]]:
    """Lists what is compiled while the context is open, with JAX's reason for the cache miss."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = " ".join(record.getMessage().split())
            if "CACHE MISS" in line:
                lines.append(line)

    logger, listener = logging.getLogger("jax"), Listener()
    jax.config.update("jax_explain_cache_misses", True)
    logger.addHandler(listener)
    try:
        yield lines
    finally:
        logger.removeHandler(listener)
        jax.config.update("jax_explain_cache_misses", False)


def kernels(
    module: HloModule, events: Sequence[trace.Event], steps: int, peak: float, bandwidth: float
) -> list[Kernel]:
    """Every instruction that ran, the longest first, per step and device."""
    devices = len({event.device for event in events}) or 1
    times: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        times[event.name].append(event.end - event.begin)
    found = []
    for name, each in times.items():
        place = module.computation_of.get(name)
        if place is None:
            found.append(_unknown(name, each, steps * devices))
            continue
        instruction = module.computations[place][name]
        if instruction.opcode in HOLDERS:
            continue
        count, seconds = len(each) / steps / devices, sum(each) / steps / devices
        flops = module.total_flops(place, instruction) * count
        moved = module.traffic(place, instruction) * count
        origin, stack = module.origin(instruction), module.stack(instruction)
        part = PART.search(origin.path)
        found.append(
            Kernel(
                name=name,
                opcode=instruction.opcode,
                seconds=seconds,
                count=count,
                flops=flops,
                bytes=moved,
                roof=max(flops / peak, moved / bandwidth) / seconds if seconds else math.nan,
                source=module.source(instruction) or "",
                part=(part.group(1) if part else "other") + (" backward" if "transpose(" in origin.path else ""),
                layer=_layer(stack),
                stack=tuple(frame.function.replace(".<locals>", "") for frame in stack if frame.file != HERE),
            )
        )
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _unknown(name: str, seconds: Sequence[float], share: int) -> Kernel:
    return Kernel(name, "", sum(seconds) / share, len(seconds) / share, 0.0, 0.0, 0.0, "", "other", "other", ())


def _layer(stack: Sequence[Any]) -> str:
    """The layer classes of the package in a stack, from the outside in."""
    names = [frame.function.partition(".")[0] for frame in stack if "/layers/" in frame.file and "." in frame.function]
    kept = [name for name in dict.fromkeys(names) if name != "Stack"]
    return " > ".join(kept) or "other"


def _times(module: HloModule, events: Sequence[trace.Event], steps: int) -> dict[str, float]:
    """Mean seconds per step and device: busy, only communicating, and idle between instructions."""
    busy = exposed = gaps = 0.0
    devices = trace.by_device(events)
    for mine in devices.values():
        talk: list[trace.Interval] = []
        work: list[trace.Interval] = []
        for event in mine:
            instruction = _find(module, event.name)
            if instruction is not None and instruction.opcode in HOLDERS:
                continue
            (talk if instruction is not None and _talks(module, instruction) else work).append((event.begin, event.end))
        busy += trace.total_length(work)
        exposed += trace.subtract(talk, work)
        gaps += max(event.end for event in mine) - mine[0].begin - trace.total_length([*work, *talk])
    share = steps * max(1, len(devices))
    return {"busy": busy / share, "exposed": exposed / share, "gaps": gaps / share}


def _find(module: HloModule, name: str) -> Instruction | None:
    place = module.computation_of.get(name)
    return None if place is None else module.computations[place][name]


def _talks(module: HloModule, instruction: Instruction) -> bool:
    """Whether an instruction communicates or waits for communication."""
    if instruction.collective is not None:
        return True
    if instruction.opcode.endswith("-done"):
        begun = [_find(module, operand) for operand in instruction.operands]
        return any(each is not None and each.collective is not None for each in begun)
    return False
