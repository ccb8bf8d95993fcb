"""How long a compiled program takes at best: its instructions in their order, under the roofs of a chip."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmjax.hardware.chips import Chip
from mmjax.profiling.hlo import Module, Product
from mmjax.profiling.instruction import FREE, Instruction

# Rows, columns and sums of a product are filled up to multiples of these in a matrix unit (Jouppi et al. 2023; v6e and
# TPU7x have units of 256 x 256); elsewhere they are not.
TILES = dict.fromkeys(("v4", "v5e", "v5p"), (8, 128, 128)) | dict.fromkeys(("v6e", "tpu7x"), (8, 256, 256))
# What can hold a program up.
KINDS = ("compute", "memory", "ici", "dcn")
# A collective's start, and each hop of it, take so long whatever it sends, seconds.
START, HOP = 2e-6, 1e-6


class Route(NamedTuple):
    """How devices of a group reach each other: what one sends, bytes a second, in how many hops, and over which network
    ("ici", "dcn")."""

    rate: float
    hops: int
    network: str


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a run, and of what they are made: `compute` and `memory` of what each of the two holds up, `ici` and
    `dcn` of communication that nothing hides. `parts` are seconds by the place in the source that asked for them."""

    seconds: float
    compute: float
    memory: float
    ici: float
    dcn: float
    parts: dict[str, float]


class RooflineSimulator:
    """The course of a program on one device; every device does the same."""

    def __init__(self, module: Module, chip: Chip, route: Callable[[Sequence[int]], Route]):
        """`way` says how a collective goes among a group of devices."""
        self.module, self.chip, self.route = module, chip, route
        self.tile = TILES.get(chip.name, (1, 1, 1))
        self.now = 0.0
        self.free: dict[str, float] = collections.defaultdict(float)
        self.under: dict[str, float] = collections.defaultdict(float)
        self.parts: dict[str, float] = collections.defaultdict(float)
        # When what was begun is over, and over which network it goes; by its name, or what its two sides share.
        self.ends: dict[tuple[str, str | None], tuple[float, str]] = {}
        self.meetings: dict[str, str | None] = {}
        # Seconds that collectives still need which move only while what they are fused with runs, by channel.
        self.chains: dict[str, tuple[float, str]] = {}

    def run(self) -> Roofline:
        """The whole program."""
        self._computation(self.module.entry)
        under = {kind: self.under[kind] for kind in KINDS}
        return Roofline(self.now, **under, parts=dict(self.parts))

    def _computation(self, name: str) -> None:
        for instruction in self.module.computations[name].values():
            self._instruction(name, instruction)

    def _instruction(self, name: str, instruction: Instruction) -> None:
        match instruction.opcode:
            case opcode if opcode in FREE:
                return
            case "while":
                self._repeat(instruction)
            case "conditional":
                self._longest(instruction)
            case "call":
                for called in instruction.called:
                    self._computation(called)
            case "recv":
                self.meetings[instruction.name] = instruction.meeting
            case "send-done":
                return
            case opcode if opcode.endswith("-done"):
                self._wait(name, instruction)
            case _:
                self._work(name, instruction)

    def _repeat(self, loop: Instruction) -> None:
        """A loop's turns are alike: one is gone through and counts as all."""
        (body,) = [called for called in loop.called if called in self.module.computations]
        turns = self.module.trips(loop)
        before, under, parts = self.now, dict(self.under), dict(self.parts)
        self._computation(body)
        more = turns - 1
        self.now += more * (self.now - before)
        for kinds, old in ((self.under, under), (self.parts, parts)):
            for kind in kinds:
                kinds[kind] += more * (kinds[kind] - old.get(kind, 0.0))

    def _longest(self, choice: Instruction) -> None:
        """Of branches the one that takes longest."""
        begin, best = (self.now, self.under, self.parts), None
        for branch in choice.called:
            self.now = begin[0]
            self.under, self.parts = (collections.defaultdict(float, kinds) for kinds in begin[1:])
            self._computation(branch)
            if best is None or self.now > best[0]:
                best = self.now, self.under, self.parts
        if best is not None:
            self.now, self.under, self.parts = best

    def _work(self, name: str, instruction: Instruction) -> None:
        talk = self._talk(instruction)
        if instruction.opcode.endswith(("-start", "send")):
            if talk is None:  # a copy that is made beside everything else
                seconds = self.module.traffic(name, instruction) / 2 / self.chip.hbm
                talk = seconds, "memory"
            seconds, network = talk
            finish = max(self.now, self.free[network]) + seconds
            self.free[network] = finish
            self.ends[name, instruction.meeting or instruction.name] = finish, network
            return
        compute = self._compute(name, instruction)
        memory = self.module.traffic(name, instruction) / self.chip.hbm
        seconds, kind = max((compute, "compute"), (memory, "memory"))
        link = self._link(instruction)
        if link is not None:
            channel, part = link
            self._spend(seconds, kind, instruction)
            left, network = talk if part == "start" and talk is not None else self.chains.pop(channel, (0.0, "ici"))
            left = max(0.0, left - seconds)
            if part == "done":
                self._spend(left, network, instruction)
            else:
                self.chains[channel] = left, network
        elif talk is not None and talk[0] > seconds:
            self._spend(seconds, kind, instruction)
            self._spend(talk[0] - seconds, talk[1], instruction)
        else:
            self._spend(seconds, kind, instruction)

    def _spend(self, seconds: float, kind: str, instruction: Instruction) -> None:
        self.now += seconds
        self.under[kind] += seconds
        self.parts[self.module.source(instruction) or instruction.opcode] += seconds

    def _wait(self, name: str, done: Instruction) -> None:
        """For what was begun before, if it is not over yet."""
        for operand in done.operands:
            finish, network = self.ends.pop((name, self.meetings.get(operand, operand)), (self.now, ""))
            if finish > self.now:
                self._spend(finish - self.now, network, done)

    def _talk(self, instruction: Instruction) -> tuple[float, str] | None:
        """Seconds of the communication in an instruction, and what it goes over; None where there is none."""
        total, network = 0.0, ""
        for name, part in self._inside(instruction):
            found = self.module.sent(name, part)
            if found is None:
                continue
            _, sent = found
            group = self.module.groups(part)[0].tolist()
            rate, hops, network = self.route(group)
            total += START + HOP * hops + sent / rate
        return (total, network) if network else None

    def _link(self, instruction: Instruction) -> tuple[str, str] | None:
        """Which part of a collective that is taken apart an instruction holds, if any."""
        found = (self.module.link(name, part) for name, part in self._inside(instruction) if part is not instruction)
        return next((link for link in found if link is not None), None)

    def _inside(self, instruction: Instruction) -> list[tuple[str, Instruction]]:
        """An instruction and what it runs, with the computations they are in."""
        called = [(name, part) for name in instruction.called for part in self.module.computations[name].values()]
        return [(instruction.name, instruction), *called]

    def _compute(self, name: str, instruction: Instruction) -> float:
        """Seconds of all products in an instruction, each filled up to whole tiles."""

        def seconds(product: Product) -> float:
            sizes = zip((product.rows, product.columns, product.depth), self.tile, strict=True)
            filled = math.prod(-(-size // tile) * tile for size, tile in sizes)
            return 2 * product.times * filled / (self.chip.flops * self.chip.faster(product.kind))

        return sum(map(seconds, self.module.products(name, instruction)), start=0.0)
