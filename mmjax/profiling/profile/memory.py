"""Memory of a compiled program over time: its buffers, from first write to last read."""

import dataclasses
from collections.abc import Sequence

from mmjax.profiling.hlo import HloModule
from mmjax.profiling.instruction import Instruction

# Results that are their operands under another name.
VIEWS = ("bitcast", "tuple", "get-tuple-element", "optimization-barrier", "while", "after-all", "copy-done")
# Instructions with temporaries of their own, in what they call.
NESTED = ("while", "conditional", "call")
# They may reuse the buffer of an operand that is not read again.
KEEP_APART = ("dot", "convolution", "reduce", "custom-call", "transpose", "copy", "gather", "sort", "concatenate")


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Bytes of temporaries after each instruction, and the buffers at the peak."""

    sizes: Sequence[int]
    holders: Sequence[tuple[Instruction, int]]

    @property
    def peak(self) -> int:
        return max(self.sizes, default=0)


def timeline(module: HloModule) -> Timeline:
    """The temporaries of a program over time, without arguments, in the compiler's order.

    An estimate: the compiler may place small buffers in each other's gaps.
    """
    return _timeline(module, module.entry, module.aliased)


def _timeline(module: HloModule, name: str, aliased: frozenset[int] | None) -> Timeline:
    """The timeline of one computation.

    Where `aliased` is None all its results overwrite its arguments, as in a loop.
    """
    program = list(module.computations[name].values())
    buffers: dict[str, frozenset[str]] = {}
    for instruction in program:
        operands = [buffers.get(operand, frozenset()) for operand in instruction.operands]
        if instruction.opcode in VIEWS:
            buffers[instruction.name] = frozenset().union(*operands)
        elif instruction.opcode in ("parameter", "constant"):
            buffers[instruction.name] = frozenset()
        else:
            buffers[instruction.name] = frozenset((instruction.name,))
    root = program[-1]
    results = root.operands if root.opcode == "tuple" else (root.name,)
    elsewhere: set[str] = set()
    for place, result in enumerate(results):
        if aliased is None or place in aliased:
            elsewhere |= buffers.get(result, frozenset())
    last = {
        buffer: place
        for place, each in enumerate(program)
        for used in each.operands
        for buffer in buffers.get(used, ())
    }
    kept = {buffer for result in results for buffer in buffers.get(result, ())}
    held: dict[str, int] = {}
    sizes: list[int] = []
    most, holders = -1, []
    for place, instruction in enumerate(program):
        inner = _nested(module, instruction)
        dying = {
            buffer
            for used in instruction.operands
            for buffer in buffers.get(used, ())
            if last[buffer] == place and buffer not in kept
        }
        if instruction.name in buffers[instruction.name] and instruction.name not in elsewhere:
            size = sum(shape.bytes for shape in instruction.shapes)
            if instruction.opcode not in KEEP_APART and any(held.get(buffer) == size for buffer in dying):
                heir = next(buffer for buffer in dying if held.get(buffer) == size)
                del held[heir]
            held[instruction.name] = size
        now = sum(held.values()) + inner.peak
        sizes.append(now)
        if now > most:
            among = module.computations[name]
            most, holders = now, [(among[buffer], size) for buffer, size in held.items()] + list(inner.holders)
        for buffer in dying:
            held.pop(buffer, None)
    return Timeline(sizes, sorted(holders, key=lambda holder: -holder[1]))


def _nested(module: HloModule, instruction: Instruction) -> Timeline:
    """What an instruction needs in addition to its operands and its result."""
    if instruction.opcode not in NESTED:
        return Timeline([], [])
    inner = [
        _timeline(module, called, None if instruction.opcode == "while" else frozenset())
        for called in instruction.called
        if called in module.computations
    ]
    return max(inner, key=lambda each: each.peak, default=Timeline([], []))
