"""What a compiled program does, read from its text: instructions, how often each runs, FLOPs, and communication."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind, sizes in {"s": (2, 4, 8, 16, 32, 64), "f": (16, 32, 64)}.items() for bits in sizes
}
BITS |= {f"u{bits}": bits for bits in (2, 4, 8, 16, 32, 64)} | {"bf16": 16, "c64": 64, "c128": 128}
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
# They are done when their operands are, and move nothing.
FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result: its type, its sizes, and whether it lies in the chip's fast memory."""

    kind: str
    sizes: tuple[int, ...]
    near: bool

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.kind, 8)  # the many kinds of 8-bit floats
        return (math.prod(self.sizes) * bits + 7) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `attributes` is what follows the operands, as text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """What the pattern's group finds among the attributes."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None

    @property
    def called(self) -> list[str]:
        """The computations that it runs, of a loop without its condition."""
        names = re.findall(
            r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", self.attributes
        )
        branches = self.attribute(r"\bbranch_computations=\{([^}]*)\}")
        return names + ([] if branches is None else re.findall(r"%?([\w.\-]+)", branches))

    @property
    def trips(self) -> int:
        """How often a loop runs; 1 for what is no loop and where only the run can know."""
        count = self.attribute(r'"?known_trip_count"?:\{"n":"(\d+)"')
        return int(count) if count else 1

    @property
    def collective(self) -> str | None:
        """Which collective it begins, if any."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def source(self) -> str | None:
        """FILE:LINE of the Python that asked for it."""
        file, line = self.attribute(r'source_file="([^"]*)"'), self.attribute(r"source_line=(\d+)")
        return f"{file}:{line}" if file and line else None

    @property
    def path(self) -> str:
        """JAX's name for the operation: the functions around it, joined by slashes."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication that a program asks for `count` times a run.

    `bytes` is what a device sends in all of them; `groups` are the devices that talk to each other, by their places in
    the program, and `hidden` tells that the program goes on while it happens.
    """

    kind: str
    bytes: int
    count: int
    groups: Int[np.ndarray, "G N"]
    hidden: bool
    path: str


class Module:
    """A compiled program, from the text that `jax.stages.Compiled.as_text` gives."""

    def __init__(self, text: str):
        """Raises ValueError where the text is no program."""
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
                instruction = _parse(line)
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("the text is no compiled program: it has no ENTRY")
        count = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.partitions = int(count.group(1)) if count else 1

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs; of branches each as if it were taken."""
        runs: dict[str, int] = collections.Counter()
        runs[self.entry] = 1
        # Callers come before what they call, in this order.
        for name in self._topological():
            for instruction in self.computations[name].values():
                for called in instruction.called:
                    runs[called] += runs[name] * instruction.trips
        return dict(runs)

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
        """What a device calculates in a run: 2 M N K of every product and convolution, repeated ones included."""
        return sum(
            runs * sum(self.flops_of(name, instruction) for instruction in self.computations[name].values())
            for name, runs in self.runs.items()
            if name in self.computations
        )

    def flops_of(self, computation: str, instruction: Instruction) -> int:
        """Those of one instruction alone, without what it calls."""
        among = self.computations[computation]
        match instruction.opcode:
            case "dot":
                left = among[instruction.operands[0]].shapes[0].sizes
                axes = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
                contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
                return 2 * math.prod(instruction.shapes[0].sizes) * contracted
            case "convolution":
                return _convolution(instruction, *(among[name].shapes[0].sizes for name in instruction.operands[:2]))
        return 0

    def inside(self, computation: str, instruction: Instruction) -> int:
        """The FLOPs of an instruction with all that it calls, loops as often as they run."""
        own = self.flops_of(computation, instruction)
        return own + instruction.trips * sum(
            self.inside(name, part)
            for name in instruction.called
            if name in self.computations
            for part in self.computations[name].values()
        )

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """All of them, those that are alike together, the most bytes first."""
        found: dict[tuple, list[int]] = {}
        for name, instruction in self._each():
            kind = instruction.collective
            if kind is None:
                continue
            groups = _groups(instruction.attributes, self.partitions)
            if groups.shape[1] < 2:
                continue
            shards = instruction.shapes
            if instruction.opcode.endswith("-start") and kind != "all-reduce":
                shards = shards[len(shards) // 2 :]  # what it reads comes first
            kind, sent = self._sent(name, kind, shards, groups.shape[1])
            hidden = instruction.opcode.endswith("-start") or "async" in name
            key = kind, groups.tobytes(), groups.shape, hidden, instruction.path
            total = found.setdefault(key, [0, 0])
            total[0] += self.runs[name] * sent
            total[1] += self.runs[name]
        every = [
            Collective(kind, sent, count, np.frombuffer(groups, np.int64).reshape(shape), hidden, path)
            for (kind, groups, shape, hidden, path), (sent, count) in found.items()
        ]
        return sorted(every, key=lambda each: -each.bytes)

    def _each(self) -> Iterator[tuple[str, Instruction]]:
        for name in self.runs:
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction

    def _sent(self, name: str, kind: str, shards: Sequence[Shape], size: int) -> tuple[str, int]:
        """What a device sends to its neighbour on a ring of `size`, and what the collective really is."""
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


def _parse(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    end = _closing(rest, begin)
    return Instruction(
        name.removeprefix("%"),
        rest[:begin],
        tuple(_shapes(shapes)),
        tuple(re.findall(r"%([\w.\-]+)", rest[begin : end + 1])),
        rest[end + 1 :],
    )


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` is closed."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"a parenthesis is never closed: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for kind, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        yield Shape(kind, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size), "S(1)" in layout)


def _convolution(instruction: Instruction, inputs: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """2 x the pairs of an input and a kernel entry that meet, over all outputs: padding and dilation are no work.

    A TPU's compiler writes products of matrices so, too, with windows that reach far beyond the array.
    """
    labels = instruction.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)")
    assert labels is not None
    left, right, out = re.split(r"_|->", labels)
    outputs = instruction.shapes[0].sizes
    work = 2 * outputs[out.index("b")] * outputs[out.index("f")] * kernel[right.index("i")]
    spatial = [label for label in out if label.isdigit()]
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""

    def settings(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found.group(1).split("x") if found else [default] * len(spatial)

    strides, pads = settings("stride", "1"), settings("pad", "0_0")
    spread, apart = settings("lhs_dilate", "1"), settings("rhs_dilate", "1")
    for place, label in enumerate(spatial):
        entries = np.arange(kernel[right.index(label)])[:, None] * int(apart[place])
        positions = np.arange(outputs[out.index(label)]) * int(strides[place])
        at = positions + entries - int(pads[place].split("_")[0])
        reach = (inputs[left.index(label)] - 1) * int(spread[place])
        work *= int(((at >= 0) & (at <= reach) & (at % int(spread[place]) == 0)).sum())
    return work


def _groups(attributes: str, partitions: int) -> Int[np.ndarray, "G N"]:
    """The devices that talk to each other, a group a row."""
    listed = re.search(r"replica_groups=(?:\w+\.)?\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return np.array(
            [[int(place) for place in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        )
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        rows, columns, sizes, order = iota.groups()
        places = np.arange(int(rows) * int(columns)).reshape([int(size) for size in sizes.split(",")])
        if order:
            places = places.transpose([int(axis) for axis in order.split(",")])
        return places.reshape(int(rows), int(columns))
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        return np.array(
            [[int(place) for place in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", pairs.group(1))]
        )
    return np.arange(partitions)[None]
