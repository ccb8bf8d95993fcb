"""Analysis of a compiled program's text: instructions, run counts, FLOPs and communication."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mmjax.profiling import onednn
from mmjax.profiling.frames import PACKAGE, Frame, Frames
from mmjax.profiling.groups import device_groups
from mmjax.profiling.instruction import Instruction, axes, convolution_size, parse

# Products in the kernels of JAX's splash attention: scores and what is read; the same scores again, and four slopes.
ATTENTION = {"/splash_mha_fwd": 2, "/splash_mha_dkv": 5}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication that a program does `count` times per run.

    `bytes` is what a device sends in all of them. `groups` are the communicating devices, by their index in the
    program, and `hidden` says that the program continues meanwhile.
    """

    kind: str
    bytes: int
    count: int
    groups: Int[np.ndarray, "G N"]
    hidden: bool
    path: str


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product that runs `times` times, of rows x depth and depth x columns.

    `kind` is its element type.
    """

    rows: int
    columns: int
    depth: int
    kind: str
    times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.times * self.rows * self.columns * self.depth


class HloModule:
    """A compiled program, parsed from `jax.stages.Compiled.as_text`."""

    def __init__(self, text: str):
        """Raises ValueError where the text is not a program."""
        # What a kernel of Pallas says of itself takes lines of its own, in the midst of an instruction.
        text = re.sub(r'=\{\n(".*")\n\}', r"={\1}", text)
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            header = re.match(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?->.*\{$", line) or re.match(
                r"^(ENTRY )%?([\w.\-]+) \{", line
            )
            if header:
                current = self.computations.setdefault(header.group(2), {})
                self.entry = header.group(2) if header.group(1) else self.entry
            elif current is not None and " = " in line and line.startswith(" "):
                instruction = parse(line)
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("the text is not a compiled program: it has no ENTRY")
        count = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.partitions = int(count.group(1)) if count else 1
        self.name = text.removeprefix("HloModule ").partition(",")[0]
        self.frames = Frames(text)
        head = text[: text.find("\n")]
        self.aliased = frozenset(int(place) for place in re.findall(r"\{(\d+)\}: \(\d+, \{\}", head))
        """Results, by place, that are written over arguments."""

    @functools.cached_property
    def computation_of(self) -> dict[str, str]:
        """The computation that each instruction is in."""
        return {each: name for name, total_flops in self.computations.items() for each in total_flops}

    def origin(self, instruction: Instruction) -> Instruction:
        """The instruction with metadata about its origin: itself, or one in its fused computation."""
        if instruction.path:
            return instruction
        total_flops = [part for name in instruction.called for part in self.computations.get(name, {}).values()]
        return next((part for part in reversed(total_flops) if part.path), instruction)

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        """The Python stack of an instruction, from the outermost line of the package inwards."""
        number = self.origin(instruction).attribute(r"\bstack_frame_id=(\d+)")
        return () if number is None else self.frames.stack(int(number))

    def source(self, instruction: Instruction) -> str | None:
        """FILE:LINE of the innermost Python frame of the package for an instruction."""
        own = [frame for frame in self.stack(instruction) if frame.file.startswith(PACKAGE)]
        if own:
            return str(own[-1])
        told = self.origin(instruction)
        file, line = told.attribute(r'source_file="([^"]*)"'), told.attribute(r"source_line=(\d+)")
        return f"{file}:{line}" if file and line else None

    def trip_count(self, instruction: Instruction) -> int:
        """The number of iterations of a loop; 1 for other instructions and unknown counts.

        Where it is not annotated, it follows from the condition: a counter, incremented each time, is less than a
        constant. The counter starts at another constant, which is not 0 where the compiler has peeled off the first
        iterations.
        """
        told = instruction.attribute(r'"?known_trip_count"?:\{"n":"(\d+)"')
        if told or instruction.opcode != "while":
            return int(told or 1)
        condition = self.computations.get(instruction.attribute(r"\bcondition=%?([\w.\-]+)") or "", {})
        ends = [part for part in condition.values() if part.opcode == "compare" and "direction=LT" in part.attributes]
        if len(ends) != 1:
            return 1
        counter, limit = (condition.get(name) for name in ends[0].operands)
        if limit is None or limit.opcode != "constant":
            return 1
        return max(0, int(limit.operands[0]) - self._begin(instruction, counter))

    def _begin(self, loop: Instruction, counter: Instruction | None) -> int:
        """The start of a loop's counter, as its condition reads it; 0 where that is not a constant."""
        among = self.computations[self.computation_of[loop.name]]
        place = None if counter is None else counter.attribute(r"\bindex=(\d+)")
        carried = among.get(loop.operands[0]) if loop.operands else None
        if place is None or carried is None or carried.opcode != "tuple":
            return 0
        first = among.get(carried.operands[int(place)])
        while first is not None and first.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            first = among.get(first.operands[0])
        return int(first.operands[0]) if first is not None and first.opcode == "constant" else 0

    @functools.cached_property
    def run_counts(self) -> dict[str, int]:
        """How often each computation runs; every branch counts as if it were taken."""
        run_counts: dict[str, int] = collections.Counter()
        run_counts[self.entry] = 1
        # Callers come before what they call, in this order.
        for name in self._topological():
            for instruction in self.computations[name].values():
                for called in instruction.called:
                    run_counts[called] += run_counts[name] * self.trip_count(instruction)
        return dict(run_counts)

    def _topological(self) -> list[str]:
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in done or name not in self.computations:
                return
            for instruction in self.computations[name].values():
                for called in instruction.called:
                    visit(called)
            done[name] = None

        visit(self.entry)
        return list(done)[::-1]

    @property
    def flops(self) -> int:
        """FLOPs of a device per run: 2 M N K for every product and convolution, repeated ones included."""
        return sum(self.total_flops(self.entry, instruction) for instruction in self.computations[self.entry].values())

    def total_flops(self, computation: str, instruction: Instruction) -> int:
        """The FLOPs of an instruction and everything it calls, times the iterations of loops."""
        return sum(product.flops for product in self.products(computation, instruction))

    def products(self, computation: str, instruction: Instruction) -> Iterator[Product]:
        """All products in an instruction and the computations it calls."""
        own = self._product(computation, instruction)
        if own is not None:
            yield own
        for name in instruction.called:
            for part in self.computations.get(name, {}).values():
                for product in self.products(name, part):
                    yield dataclasses.replace(product, times=product.times * self.trip_count(instruction))

    def _product(self, computation: str, instruction: Instruction) -> Product | None:
        among = self.computations[computation]
        by_onednn = onednn.is_onednn_call(instruction)
        if instruction.opcode == "custom-call" and not by_onednn:
            return self._attention(among, instruction)
        if instruction.opcode not in ("dot", "convolution") and not by_onednn:
            return None
        factors = [among[name].shapes[0] for name in instruction.operands[:2]]
        left, right = (shape.sizes for shape in factors)
        out, kind = instruction.shapes[0].sizes, factors[0].kind
        if by_onednn:
            return Product(*onednn.product_size(instruction, left, right, out), kind)
        if instruction.opcode == "convolution":
            return Product(*convolution_size(instruction, left, right, out), kind)
        summed, shared = (axes(instruction, f"rhs_{role}_dims") for role in ("contracting", "batch"))
        depth = math.prod(right[axis] for axis in summed)
        columns = math.prod(right) // depth // math.prod(right[axis] for axis in shared)
        return Product(math.prod(out) // columns, columns, depth, kind)

    def _attention(self, among: dict[str, Instruction], instruction: Instruction) -> Product | None:
        """The products in a fused attention kernel, which its text hides: one per example and head."""
        made = next((times for kernel, times in ATTENTION.items() if kernel in instruction.path), None)
        if made is None:
            return None
        shapes = (among[name].shapes[0] for name in instruction.operands)
        query, key, *_ = (shape for shape in shapes if shape.kind == "bf16")
        *alike, rows, head = query.sizes
        return Product(rows, key.sizes[-2], head, query.kind, made * math.prod(alike))

    def traffic(self, computation: str, instruction: Instruction) -> int:
        """The bytes that an instruction reads from and writes to the device's memory.

        Of an operand that a fusion slices, the slices count; of one that it updates in place, the slice written.
        """
        among = self.computations[computation]
        shapes = [among[name].shapes for name in instruction.operands if name in among]
        read = [sum(shape.bytes for shape in each if not shape.on_chip) for each in shapes]
        written = sum(shape.bytes for shape in instruction.shapes if not shape.on_chip)
        match instruction.opcode:
            case "dynamic-slice" | "slice" | "gather":
                return 2 * written
            case "dynamic-update-slice":
                return 2 * read[1]
            case "fusion":
                (name,) = instruction.called
                return sum(self._fusion_traffic(name, read, written))
        return sum(read) + written

    def _fusion_traffic(self, name: str, read: list[int], written: int) -> Iterator[int]:
        total_flops = self.computations[name]
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for part in total_flops.values():
            for operand in part.operands:
                users[operand].append(part)

        def ends(name: str) -> list[Instruction]:
            """Its users, also under another name."""
            return [end for user in users[name] for end in (ends(user.name) if user.opcode == "bitcast" else [user])]

        for part in total_flops.values():
            if part.opcode != "parameter":
                continue
            place = int(part.operands[0]) if part.operands else 0
            whole = read[place] if place < len(read) else 0
            using = ends(part.name)
            if whole and using and all(user.opcode == "dynamic-slice" for user in using):
                yield min(whole, sum(shape.bytes for user in using for shape in user.shapes))
            elif whole and using and all(user.opcode == "dynamic-update-slice" for user in using):
                update = sum(total_flops[user.operands[1]].shapes[0].bytes for user in using if len(user.operands) > 1)
                written -= max(0, whole - update)
            else:
                yield whole
        yield max(0, written)

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """All collectives, equal ones merged, the most bytes first."""
        totals: dict[tuple, list[int]] = {}
        for name, instruction in self._each():
            found = self.collective_bytes(name, instruction)
            if found is None:
                continue
            kind, collective_bytes = found
            groups = self.groups(instruction)
            begun = instruction.opcode.endswith(("-start", "send")) or name in self._begun
            hidden = begun or self.split_collective(name, instruction) is not None
            key = kind, groups.tobytes(), groups.shape, hidden, instruction.path
            total = totals.setdefault(key, [0, 0])
            total[0] += self.run_counts[name] * collective_bytes
            total[1] += self.run_counts[name]
        every = [
            Collective(kind, collective_bytes, count, np.frombuffer(groups, np.int64).reshape(shape), hidden, path)
            for (kind, groups, shape, hidden, path), (collective_bytes, count) in totals.items()
        ]
        return sorted(every, key=lambda each: -each.bytes)

    @functools.cached_property
    def _begun(self) -> set[str]:
        """Computations that start asynchronously and run until they are waited for."""
        starts = (each for _, each in self._each() if each.opcode.endswith("-start"))
        return {called for each in starts for called in each.called}

    def groups(self, collective: Instruction) -> Int[np.ndarray, "G N"]:
        """The devices that communicate, one group per row."""
        return device_groups(collective.attributes, self.partitions)

    def split_collective(self, name: str, instruction: Instruction) -> tuple[str, str] | None:
        """The part of a collective that the TPU compiler has split and fused with other work.

        The collective's channel, and "start", "step" or "done"; each part is written as the whole collective. None for
        everything else.
        """
        if instruction.collective is None or instruction.attribute(r'\bchain_id="(\d+)"') is None:
            return None
        beside = self.computations.get(name, {}).values()
        targets = {each.attribute(r'\bcustom_call_target="AsyncCollective(\w+)"') for each in beside}
        part = "start" if "Start" in targets else "done" if "Done" in targets else "step"
        return instruction.attribute(r"\bchannel_id=(\d+)") or "", part

    def _each(self) -> Iterator[tuple[str, Instruction]]:
        for name in self.run_counts:
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction

    def collective_bytes(self, name: str, instruction: Instruction) -> tuple[str, int] | None:
        """The collective that an instruction starts, and the bytes a device sends to its ring neighbour.

        None where it starts none, or every group has one device.
        """
        kind, split_collective = instruction.collective, self.split_collective(name, instruction)
        if split_collective is not None and split_collective[1] != "start":
            return None
        size = 0 if kind is None else self.groups(instruction).shape[1]
        if kind is None or size < 2:
            return None
        shards = instruction.shapes
        if instruction.opcode == "send":
            shards = shards[:1]
        elif instruction.opcode.endswith("-start") and kind != "all-reduce":
            shards = shards[len(shards) // 2 :]  # what it reads comes first
        whole = sum(shape.bytes for shape in shards)
        match kind:
            case "all-reduce" if "all-reduce-scatter" in name:  # one with a slice of its result, in a fusion
                return "reduce-scatter", whole * (size - 1) // size
            case "all-reduce":
                return kind, 2 * whole * (size - 1) // size
            case "reduce-scatter":
                return kind, whole * (size - 1)  # the shapes are of what is left of it
            case "collective-permute" | "collective-broadcast":
                return kind, whole
        return kind, whole * (size - 1) // size
