"""Runs implementations in separate processes, taking turns, so that a slow machine affects all."""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from mmjax.errors import UserError

from ..huge_pages import prefer_huge_pages

# Prepares what is to be measured, by the precision it is measured in, and returns what measures it once: seconds by
# what took them.
Setup = Callable[[str], Callable[[], dict[str, float]]]

# Seconds that a implementation has to end.
PATIENCE = 20


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One implementation's seconds divided by another's, for a quantity that both measure."""

    name: str
    ours: str
    peer: str
    what: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Implementations by name, and which are compared; the first ratio is the benchmark's result."""

    about: str
    implementations: Mapping[str, Setup]
    ratios: Sequence[Ratio]


@dataclasses.dataclass(frozen=True)
class Result:
    """A ratio's median and range over all pairs."""

    name: str
    ratio: float
    low: float
    high: float
    pairs: int
    seconds: tuple[float, float]


def load(name: str) -> Benchmark:
    """The benchmark in the file of that name."""
    found: Benchmark = importlib.import_module(f"{__package__}.{name}").BENCHMARK
    return found


def run(name: str, dtype: str, pairs: int, say: Callable[[str], None]) -> list[Result]:
    """Makes all implementations measure `pairs` times in turns, after one uncounted time.

    Raises UserError where one cannot run.
    """
    benchmark = load(name)
    seconds: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = {
            implementation: stack.enter_context(_worker(name, implementation, dtype))
            for implementation in benchmark.implementations
        }
        for turn in range(pairs + 1):
            # Whoever is last in one turn is first in the next.
            order = list(workers)[:: 1 if turn % 2 else -1]
            for implementation in order:
                found = _ask(workers[implementation], implementation)
                if turn:
                    for what, value in found.items():
                        seconds.setdefault((implementation, what), []).append(value)
            shown = ", ".join(f"{who} {what} {values[-1]:.4g} s" for (who, what), values in seconds.items())
            say(f"[{turn}/{pairs}] {shown or 'warm'}")
    return [
        _result(ratio, seconds[ratio.ours, ratio.what], seconds[ratio.peer, ratio.what]) for ratio in benchmark.ratios
    ]


def _result(ratio: Ratio, ours: Sequence[float], peer: Sequence[float]) -> Result:
    ratios = [one / other for one, other in zip(ours, peer, strict=True)]
    medians = statistics.median(ours), statistics.median(peer)
    return Result(ratio.name, statistics.median(ratios), min(ratios), max(ratios), len(ratios), medians)


@contextlib.contextmanager
def _worker(name: str, implementation: str, dtype: str) -> Iterator["subprocess.Popen[str]"]:
    words = [sys.executable, "-m", f"{__package__}.runner", name, implementation, dtype]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        # It ends when nothing more is asked; those that it has started, in its group, with it.
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ask(process: "subprocess.Popen[str]", implementation: str) -> dict[str, float]:
    """One measurement of a implementation."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        print("go", file=process.stdin, flush=True)
    for line in process.stdout:
        if line.startswith("measured "):
            found: dict[str, float] = json.loads(line.removeprefix("measured "))
            return found
        if line.startswith("missing "):
            raise UserError(
                f"{implementation} needs {line.removeprefix('missing ').strip()}: pip install -e '.[bench]' brings it"
            )
    raise UserError(f"{implementation} ended before it measured anything; its output is above")


def _work(name: str, implementation: str, dtype: str) -> None:
    """Measures once for each input line. Other output goes to standard error."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    measure = None
    for _ in sys.stdin:
        try:
            measure = measure or load(name).implementations[implementation](dtype)
            print("measured", json.dumps(measure()), file=answer, flush=True)
        except ModuleNotFoundError as error:
            print("missing", error.name, file=answer, flush=True)
            return


if __name__ == "__main__":
    prefer_huge_pages()
    _work(*sys.argv[1:])
