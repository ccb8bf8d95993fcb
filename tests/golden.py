"""What is kept as text, so that a change of it shows in review."""

import re
from collections import Counter
from pathlib import Path

import jax
import pytest

GOLDEN = Path(__file__).parent / "system" / "golden"


def collectives(program: str) -> str:
    """How many collectives of each kind there are, by the number of devices that talk to each other."""
    pattern = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(.*")
    counts: Counter[str] = Counter()
    for match in pattern.finditer(program):
        groups = re.search(r"replica_groups=(\{\{[\d,]+\}|\[\d+,\d+\])", match.group(0))
        size = "all" if groups is None else group_size(groups.group(1))
        counts[f"{match.group(1)} among {size}"] += 1
    return "".join(f"{kind}: {count}\n" for kind, count in sorted(counts.items()))


def group_size(groups: str) -> int:
    numbers = re.findall(r"\d+", groups)
    return len(numbers) if groups.startswith("{") else int(numbers[1])


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
