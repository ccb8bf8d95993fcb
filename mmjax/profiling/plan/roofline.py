"""A lower bound of a compiled program's time: its instructions in order, by a chip's roofline."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmjax.hardware.chips import Chip
from mmjax.profiling.hlo import HloModule, Product
from mmjax.profiling.instruction import FREE, Instruction

# Rows, columns and sums of a product are filled up to multiples of these in a matrix unit (Jouppi et al. 2023; v6e and
# TPU7x have units of 256 x 256); elsewhere they are not.
TILES = dict.fromkeys(("v4", "v5e", "v5p"), (8, 128, 128)) | dict.fromkeys(("v6e", "tpu7x"), (8, 256, 256))
# What can hold a program up.
KINDS = ("compute", "memory", "ici", "dcn")
# Latency of a collective's start and of each hop, seconds.
START, HOP = 2e-6, 1e-6


class Route(NamedTuple):
    """How a group of devices communicates: bytes per second, hops, and the network.

    The network is "ici" or "dcn".
    """

    rate: float
    hops: int
    network: str


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a run and its parts.

    `compute` and `memory` are the time bound by each, `ici` and `dcn` that of exposed communication. `parts` are
    seconds by source location.
    """

    seconds: float
    compute: float
    memory: float
    ici: float
    dcn: float
    parts: dict[str, float]


class RooflineSimulator:
    """Simulates a program on one device; every device does the same."""

    def __init__(self, module: HloModule, chip: Chip, route: Callable[[Sequence[int]], Route]):
        """`route` gives the route of a collective among a group of devices."""
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
        """Simulates the whole program."""
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
                self.meetings[instruction.name] = instruction.channel
            case "send-done":
                return
            case opcode if opcode.endswith("-done"):
                self._wait(name, instruction)
            case _:
                self._work(name, instruction)

    def _repeat(self, loop: Instruction) -> None:
        """Simulates one iteration of a loop and scales it."""
        (body,) = [called for called in loop.called if called in self.module.computations]
        turns = self.module.trip_count(loop)
        before, under, parts = self.now, dict(self.under), dict(self.parts)
        self._computation(body)
        more = turns - 1
        self.now += more * (self.now - before)
        for kinds, old in ((self.under, under), (self.parts, parts)):
            for kind in kinds:
                kinds[kind] += more * (kinds[kind] - old.get(kind, 0.0))

    def _longest(self, choice: Instruction) -> None:
        """Simulates the slowest branch."""
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
            self.ends[name, instruction.channel or instruction.name] = finish, network
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
        """Waits for an asynchronous operation that is not done yet."""
        for operand in done.operands:
            finish, network = self.ends.pop((name, self.meetings.get(operand, operand)), (self.now, ""))
            if finish > self.now:
                self._spend(finish - self.now, network, done)

    def _talk(self, instruction: Instruction) -> tuple[float, str] | None:
        """Seconds and network of an instruction's communication; None where it has none."""
        total, network = 0.0, ""
        for name, part in self._inside(instruction):
            found = self.module.collective_bytes(name, part)
            if found is None:
                continue
            _, collective_bytes = found
            group = self.module.groups(part)[0].tolist()
            rate, hops, network = self.route(group)
            total += START + HOP * hops + collective_bytes / rate
        return (total, network) if network else None

    def _link(self, instruction: Instruction) -> tuple[str, str] | None:
        """The part of a split collective in an instruction, if any."""
        found = (
            self.module.split_collective(name, part)
            for name, part in self._inside(instruction)
            if part is not instruction
        )
        return next((link for link in found if link is not None), None)

    def _inside(self, instruction: Instruction) -> list[tuple[str, Instruction]]:
        """An instruction and everything it runs, with their computations."""
        called = [(name, part) for name in instruction.called for part in self.module.computations[name].values()]
        return [(instruction.name, instruction), *called]

    def _compute(self, name: str, instruction: Instruction) -> float:
        """Seconds of all products in an instruction, padded to whole tiles."""

        def seconds(product: Product) -> float:
            sizes = zip((product.rows, product.columns, product.depth), self.tile, strict=True)
            filled = math.prod(-(-size // tile) * tile for size, tile in sizes)
            return 2 * product.times * filled / (self.chip.flops * self.chip.speedup(product.kind))

        return sum(map(seconds, self.module.products(name, instruction)), start=0.0)
