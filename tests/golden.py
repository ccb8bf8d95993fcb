"""What is kept as text, so that a change of it shows in review."""

from collections import Counter
from pathlib import Path

import jax
import pytest

from mmjax.profiling.hlo import HloModule

GOLDEN = Path(__file__).parent / "system" / "golden"


def collectives(program: str) -> str:
    """How many collectives of each kind there are, by the number of devices that talk to each other."""
    counts: Counter[str] = Counter()
    module = HloModule(program)
    for instruction in (each for computation in module.computations.values() for each in computation.values()):
        if instruction.collective is not None:
            named = instruction.attribute(r"replica_groups=(\{\{[\d,]+\}|\[\d+,\d+\])")
            size = "all" if named is None else module.groups(instruction).shape[1]
            counts[f"{instruction.collective} among {size}"] += 1
    return "".join(f"{kind}: {count}\n" for kind, count in sorted(counts.items()))


def check_collectives(name: str, program: str) -> None:
    """Compare a compiled program's collectives with the file of that name for this version of JAX."""
    check_golden(f"collectives_{name}_jax{'.'.join(jax.__version__.split('.')[:2])}.txt", collectives(program))


def check_golden(name: str, content: str) -> None:
    """Compare with the file; a version of JAX that has none yet gets one, and the test fails once to say so."""
    path = GOLDEN / name
    if not path.exists():
        path.write_text(content)
        pytest.fail(f"{path.name} was not there and has been written; look at it and commit it")
    assert content == path.read_text()
