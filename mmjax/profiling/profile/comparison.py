"""What changed from one profile to another: times by what they belong to, and the programs, kernel by kernel."""

import collections
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.profiling.hlo import Module
from mmjax.profiling.instruction import FREE, Instruction

# Lines of a program that stay the same around those that do not.
CONTEXT = 2


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Every name with both of its times, that which changed most first."""
    names = dict.fromkeys([*before, *after])
    found = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names]
    return sorted(found, key=lambda row: -abs(row[2] - row[1]))


def by_source(kernels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of kernels by the line in the source that asked for them."""
    found: dict[str, float] = collections.defaultdict(float)
    for kernel in kernels:
        found[kernel["source"] or kernel["opcode"]] += kernel["seconds"]
    return dict(found)


def program_difference(before: str, after: str, names: tuple[str, str]) -> list[str]:
    """A unified diff of two compiled programs, a line a kernel: its result, what it does, and the function it is from.

    Numbers in names, which change with everything, are left out.
    """
    old, new = (list(_described(Module(text))) for text in (before, after))
    return list(difflib.unified_diff(old, new, *names, n=CONTEXT, lineterm=""))


def _described(module: Module) -> Iterator[str]:
    fused = {
        called
        for inside in module.computations.values()
        for instruction in inside.values()
        if instruction.opcode not in ("while", "conditional", "call")
        for called in instruction.called
    }
    for name in module.runs:
        if name in fused or name not in module.computations:
            continue
        for instruction in module.computations[name].values():
            if instruction.opcode not in FREE:
                yield _line(module, instruction)


def _line(module: Module, instruction: Instruction) -> str:
    result = ", ".join(f"{shape.kind}[{','.join(map(str, shape.sizes))}]" for shape in instruction.shapes)
    inside = [
        part.opcode
        for called in instruction.called
        for part in module.computations.get(called, {}).values()
        if part.opcode not in FREE
    ]
    does = f"{instruction.opcode}({' '.join(inside)})" if inside else instruction.opcode
    stack = module.stack(instruction)
    return f"{does} -> {result}  {stack[-1].function if stack else ''}".rstrip()
