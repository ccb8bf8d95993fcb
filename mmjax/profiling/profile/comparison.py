"""Differences between two profiles: times by part, and the programs, kernel by kernel."""

import collections
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.profiling.hlo import HloModule
from mmjax.profiling.instruction import FREE, Instruction

# Lines of a program that stay the same around those that do not.
CONTEXT = 2


def largest_changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Every name with both of its times, the largest change first."""
    names = dict.fromkeys([*before, *after])
    found = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names]
    return sorted(found, key=lambda row: -abs(row[2] - row[1]))


def by_source(kernels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of kernels by source location."""
    found: dict[str, float] = collections.defaultdict(float)
    for kernel in kernels:
        found[kernel["source"] or kernel["opcode"]] += kernel["seconds"]
    return dict(found)


def program_difference(before: str, after: str, names: tuple[str, str]) -> list[str]:
    """A unified diff of two compiled programs, one line per kernel.

    A line has the result, the operation, and the function it comes from. Numbers in names, which always change, are
    left out.
    """
    old, new = (list(_described(HloModule(text))) for text in (before, after))
    return list(difflib.unified_diff(old, new, *names, n=CONTEXT, lineterm=""))


def _described(module: HloModule) -> Iterator[str]:
    fused = {
        called
        for inside in module.computations.values()
        for instruction in inside.values()
        if instruction.opcode not in ("while", "conditional", "call")
        for called in instruction.called
    }
    for name in module.run_counts:
        if name in fused or name not in module.computations:
            continue
        for instruction in module.computations[name].values():
            if instruction.opcode not in FREE:
                yield _line(module, instruction)


def _line(module: HloModule, instruction: Instruction) -> str:
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
