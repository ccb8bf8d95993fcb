"""Where the time of real training steps goes: traced, and told by kernel, place in the source, layer and modality."""

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
from mmjax.hardware.flops import peak_bytes, peak_flops
from mmjax.profiling.hlo import Module
from mmjax.profiling.instruction import Instruction
from mmjax.profiling.profile import trace
from mmjax.profiling.profile.memory import Timeline, timeline
from mmjax.profiling.profile.rss import RssGrowth, watch_rss
from mmjax.sharding.mesh import choose_rules
from mmjax.training.program import Program

# Steps that are run before the one whose memory is measured, and those that are timed: the first ones find memory that
# is not there yet.
WARM = 2
# A process's memory comes and goes by some megabytes of its own: a smaller step cannot be told from that.
TOLD = 2**26
# So many of the largest buffers are told of where memory is fullest.
SHOWN = 30
# What holds other instructions, and takes what they take.
HOLDERS = ("while", "conditional", "call")
HERE = "mmjax/profiling/profile/profile.py"
PART = re.compile(r"\b(encoders/\w+|fusion|outputs/\w+|optimizer)\b")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One instruction of the program: what it takes of a step on one device, and of what the machine could do.

    `roof` is the share of the faster of its two limits, arithmetic and memory, that it reaches; `flops` and `bytes` are
    those of all its runs in a step.
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
    """What a step takes, seconds and bytes of one device.

    `busy` is when a device computes, `exposed` when it does nothing but communicate, `gaps` when nothing runs on it,
    `waited` what a step waited for its batch. `compile` is by phase; `recompiled` says what was compiled while steps
    ran, and why. `written` is the program as it went to the compiler, `program` as it came back.
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
    course: Timeline
    module: Module
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
    def worked(self) -> float:
        """Seconds of all kernels; more than `busy` where they run beside each other."""
        return sum(kernel.seconds for kernel in self.kernels)

    def by(self, key: Callable[[Kernel], str]) -> dict[str, float]:
        """Seconds of kernels by something they have in common, most first."""
        found: dict[str, float] = collections.defaultdict(float)
        for kernel in self.kernels:
            found[key(kernel)] += kernel.seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def json(self) -> dict[str, Any]:
        """As profile.json holds it."""
        held: dict[str, int] = collections.defaultdict(int)
        for each, size in self.course.holders:
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
            "memory_timeline": list(self.course.sizes),
            "memory_holders": kept[:SHOWN],
            "parts": self.by(lambda kernel: kernel.part),
            "layers": self.by(lambda kernel: kernel.layer),
            "kernels": [
                {name: value for name, value in dataclasses.asdict(kernel).items() if name != "stack"}
                for kernel in self.kernels
            ],
        }


def profile(experiment: Experiment, steps: int, folder: Path, say: Callable[[str], None]) -> Profile:
    """Compile the experiment's training step, run it on its data from a first draw of parameters, and trace it.

    The trace stays under `folder`, for Perfetto and xprof. Raises UserError where the experiment cannot run here.
    """
    mesh = experiment.mesh.build()
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        rules = choose_rules(experiment.rules, mesh)
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        data = experiment.data.fit_tokenizers(experiment.data_dir)
        data.open(experiment.data_dir, "train")
        data.check_fields(experiment.data_dir)
        flops, bandwidth = peak_flops(experiment.model.dtype)[0], peak_bytes()
        program = Program(experiment, data, rules)
        size = experiment.train.batch_size
        loader = Loader(data, experiment.data_dir, "train", size, seed=experiment.seed, rows=rows_of(sharding, size))
        feed = resources.enter_context(DevicePrefetcher(loader, sharding, 0, WARM + 1 + 2 * steps))
        say("compiling the step")
        draw_key, key = jax.random.split(jax.random.key(experiment.seed))
        began = time.perf_counter()
        state = jax.block_until_ready(program.draw(draw_key))
        phases = {"drawing parameters": time.perf_counter() - began}
        lowered, compiled = _compile(program, state, key, phases)
        text = compiled.as_text() or ""
        module = Module(text)
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
    course = timeline(module)
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
        | {"peak": sum(parts.values()), "estimated temporaries": course.peak}
        | ({} if measured is None else {"measured peak": measured}),
        course=course,
        module=module,
        program=text,
        written=lowered.as_text(dialect="hlo"),
    )


def _measured(held: int, growth: RssGrowth, devices: int) -> int | None:
    """Bytes of a device at most: by its own count or, where it has none, its share of what the process came to hold."""
    counted = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if counted is not None or growth.bytes is None or growth.bytes < TOLD or jax.default_backend() != "cpu":
        return counted
    return (held + growth.bytes) // devices


def _compile(
    program: Program, state: Any, key: jax.Array, phases: dict[str, float]
) -> tuple[jax.stages.Lowered, jax.stages.Compiled]:
    """The step, and in `phases` how long each way to it took."""
    began = time.perf_counter()
    traced = program.step().trace(state, [program.batch()], key)
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
    """So many steps, as training runs them: the next one is on its way before one is done. And seconds of each."""
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
    """What is compiled while the context is open, each with JAX's own word on why it was not there yet."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = " ".join(record.getMessage().split())
            if "CACHE MISS" in line:
                said.append(line)

    logger, listener = logging.getLogger("jax"), Listener()
    jax.config.update("jax_explain_cache_misses", True)
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        jax.config.update("jax_explain_cache_misses", False)


def kernels(module: Module, events: Sequence[trace.Event], steps: int, peak: float, bandwidth: float) -> list[Kernel]:
    """Every instruction that ran, the longest first; figures are of one step on one device."""
    devices = len({event.device for event in events}) or 1
    times: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        times[event.name].append(event.end - event.begin)
    found = []
    for name, each in times.items():
        place = module.places.get(name)
        if place is None:
            found.append(_unknown(name, each, steps * devices))
            continue
        instruction = module.computations[place][name]
        if instruction.opcode in HOLDERS:
            continue
        count, seconds = len(each) / steps / devices, sum(each) / steps / devices
        flops = module.inside(place, instruction) * count
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
    """The classes of the package's layers that were at work, from the outside in."""
    names = [frame.function.partition(".")[0] for frame in stack if "/layers/" in frame.file and "." in frame.function]
    kept = [name for name in dict.fromkeys(names) if name != "Stack"]
    return " > ".join(kept) or "other"


def _times(module: Module, events: Sequence[trace.Event], steps: int) -> dict[str, float]:
    """Of a device, on average, seconds of a step: busy, only communicating, and idle between instructions."""
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
        busy += trace.length(work)
        exposed += trace.without(talk, work)
        gaps += max(event.end for event in mine) - mine[0].begin - trace.length([*work, *talk])
    share = steps * max(1, len(devices))
    return {"busy": busy / share, "exposed": exposed / share, "gaps": gaps / share}


def _find(module: Module, name: str) -> Instruction | None:
    place = module.places.get(name)
    return None if place is None else module.computations[place][name]


def _talks(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction is communication, or waits for some."""
    if instruction.collective is not None:
        return True
    if instruction.opcode.endswith("-done"):
        begun = [_find(module, operand) for operand in instruction.operands]
        return any(each is not None and each.collective is not None for each in begun)
    return False
