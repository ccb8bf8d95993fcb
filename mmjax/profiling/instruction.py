"""One instruction of a compiled program, parsed from its line."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind, sizes in {"s": (2, 4, 8, 16, 32, 64), "f": (16, 32, 64)}.items() for bits in sizes
}
BITS |= {f"u{bits}": bits for bits in (2, 4, 8, 16, 32, 64)} | {"bf16": 16, "c64": 64, "c128": 128}
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
NUMBERED = re.compile(r"(parameter|constant)\(-?\d+\)")
# They are done when their operands are, and move nothing.
FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class HloShape:
    """One array of an instruction's result: type, sizes, and whether it is in on-chip memory."""

    kind: str
    sizes: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.kind, 8)  # the many kinds of 8-bit floats
        return (math.prod(self.sizes) * bits + 7) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `attributes` is the text after the operands."""

    name: str
    opcode: str
    shapes: tuple[HloShape, ...]
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern searched in the attributes."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None

    @property
    def called(self) -> list[str]:
        """The computations that it runs, without the condition of a loop."""
        names = re.findall(
            r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", self.attributes
        )
        branches = self.attribute(r"\bbranch_computations=\{([^}]*)\}")
        return names + ([] if branches is None else re.findall(r"%?([\w.\-]+)", branches))

    @property
    def collective(self) -> str | None:
        """The collective it starts, if any; one between slices is written as a send to the host."""
        if self.opcode == "send":
            kind = self.attribute(r'_xla_megascale_transfer_type="(\w+)"')
            return None if kind is None else kind.lower().replace("_", "-")
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def channel(self) -> str | None:
        """The channel that a `send` shares with its `recv`."""
        return self.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"')

    @property
    def path(self) -> str:
        """JAX's name of the operation: the enclosing functions, joined by slashes."""
        return self.attribute(r'op_name="([^"]*)"') or ""


def parse(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    begin = rest.index("(")
    end = _closing(rest, begin)
    return Instruction(
        name.removeprefix("%"),
        rest[:begin],
        tuple(_shapes(shapes)),
        # A parameter's index or a constant's value is written in place of operands.
        (rest[begin + 1 : end],) if NUMBERED.match(rest) else tuple(_names(rest[begin : end + 1])),
        rest[end + 1 :],
    )


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _closing(text: str, begin: int) -> int:
    """The index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"a parenthesis is never closed: {text[:80]}")


def _shapes(text: str) -> Iterator[HloShape]:
    for kind, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        yield HloShape(kind, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size), "S(1)" in layout)


def axes(instruction: Instruction, name: str) -> list[int]:
    found = instruction.attribute(rf"\b{name}=\{{([\d,]*)\}}") or ""
    return [int(axis) for axis in found.split(",") if axis]


def convolution_size(
    instruction: Instruction, inputs: tuple[int, ...], kernel: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[int, int, int]:
    """Rows, columns and depth of a convolution as a matrix product.

    Rows are the pairs of an input and a kernel entry that meet, over all outputs: padding and dilation do not count. A
    TPU's compiler also writes matrix products like this, with windows that reach far beyond the array.
    """
    labels = instruction.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)")
    assert labels is not None
    left, right, out = re.split(r"_|->", labels)
    rows = outputs[out.index("b")]
    spatial = [label for label in out if label.isdigit()]
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""

    def settings(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found.group(1).split("x") if found else [default] * len(spatial)

    strides, pads = settings("stride", "1"), settings("pad", "0_0")
    spread, apart = settings("lhs_dilate", "1"), settings("rhs_dilate", "1")
    for place, label in enumerate(spatial):
        rows *= kernel_overlaps(
            inputs[left.index(label)],
            kernel[right.index(label)],
            outputs[out.index(label)],
            stride=int(strides[place]),
            pad=int(pads[place].split("_")[0]),
            spread=int(spread[place]),
            apart=int(apart[place]),
        )
    return rows, outputs[out.index("f")], kernel[right.index("i")]


def kernel_overlaps(
    inputs: int, kernel: int, outputs: int, *, stride: int, pad: int, spread: int = 1, apart: int = 1
) -> int:
    """Pairs of an input and a kernel entry that meet along a dimension with these sizes.

    There are `spread` - 1 zeros between inputs and `apart` - 1 between kernel entries.
    """
    at = np.arange(outputs) * stride + np.arange(kernel)[:, None] * apart - pad
    return int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())
