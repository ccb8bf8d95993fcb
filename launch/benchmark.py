"""Compare with other libraries: `python -m launch.benchmark NAME [pairs=5]`.

All implementations measure in turns, in one run; a ratio is the median of its pairs, with their range. The last line on
standard output is the path of benchmark.json. `pip install -e '.[bench]'` brings the peers.
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import chz

from mmjax.fields import OPERATIONAL
from mmjax.files import local_path, make_folder, write_atomic

from . import command_line
from .benchmarks import runner

RESULT, PAGE = "benchmark.json", "report.html"
NAMES = ("step", "input", "packing", "checkpoint", "attention", "startup")
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy"),
    *("torch", "transformers", "safetensors", "tensorflow-cpu", "pillow", "webdataset", "datasets"),
)


@chz.chz
class BenchmarkRequest:
    """What is measured, how often, in which precision."""

    name: str = chz.field(doc="the benchmark")
    pairs: int = chz.field(default=5, doc="how often everyone measures")
    dtype: Literal["float32", "bfloat16"] = chz.field(default="float32", doc="the precision of what is computed")
    out: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda request: f"benchmarks/{request.name}-{request.dtype}"),
        doc="where everything goes",
        metadata=OPERATIONAL,
    )

    @chz.validate
    def _some(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs={self.pairs} must be at least 1")


def names() -> dict[str, str]:
    """The benchmarks there are."""
    return {name: runner.load(name).about for name in NAMES}


def benchmark(request: BenchmarkRequest) -> Path:
    """Measure as asked; returns the path of the result."""
    with make_folder(local_path(request.out)) as folder:
        results = runner.run(request.name, request.dtype, request.pairs, command_line.say)
    for each in results:
        command_line.say(f"{each.name}: {each.ratio:.3f} [{each.low:.3f}, {each.high:.3f}] of {each.pairs} pairs")
    first = dataclasses.asdict(results[0])
    whole: dict[str, Any] = {
        "name": request.name,
        "dtype": request.dtype,
        **{key: first[key] for key in ("ratio", "low", "high", "pairs")},
        "ratios": [dataclasses.asdict(each) for each in results],
        "machine": machine(),
        "versions": versions(),
    }
    _write_page(folder, whole, results)
    return write_atomic(folder / RESULT, json.dumps(whole, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What it ran on."""
    import jax

    from mmjax.compilation import usable_cores

    words = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": words[0].partition(": ")[2] if words else platform.processor(),
        "cores": usable_cores(),
        "accelerator": None if jax.default_backend() == "cpu" else jax.local_devices()[0].device_kind,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of everything that took part, as far as it is here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write_page(folder: Path, whole: dict[str, Any], results: Sequence[runner.Result]) -> None:
    from mmjax.reports.page import Section, Table, write_page

    rows = [
        [each.name, f"{each.ratio:.3f}", f"{each.low:.3f}", f"{each.high:.3f}", *(f"{s:.4g}" for s in each.seconds)]
        for each in results
    ]
    columns = ["ratio", "median", "from", "to", "the one, s", "the other, s"]
    about = f"{whole['pairs']} measurements of each, in turns. " + ", ".join(
        f"{name} {number}" for name, number in whole["versions"].items()
    )
    facts = {"ratio": whole["ratio"], **{key: whole["machine"][key] for key in ("processor", "cores")}}
    title = f"Benchmark: {whole['name']}, {whole['dtype']}"
    write_page(folder / PAGE, title, facts, [Section("Ratios", about, [Table(columns, rows)])])


SUBJECTS = command_line.Subjects("benchmark", names, lambda name: BenchmarkRequest(name=name), keys=BenchmarkRequest)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command_line.main(benchmark, "Compare with what people use now, side by side.", argv, SUBJECTS)


if __name__ == "__main__":
    sys.exit(main())
