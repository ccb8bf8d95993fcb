"""Mutation testing, by hand: does a test fail for each of the wrong lines in `tests.mutants`?

    python -m tests.mutations [NAME ...] [jobs=2]

runs those whose name or file holds one of NAME, all by default. Each is applied to a copy of the tree; the tests must
pass there without it. The last lines name the survivors; the exit code is 1 where more than 3% survive.
"""

import contextlib
import importlib
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests.flags import flags
from tests.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
MOST_SURVIVORS = 0.03
LIMIT = 600  # seconds of the processor that a test run takes at most; a mutant that makes it run longer is killed
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs")
# Imported once, before the processes of the tests are forked: it would take most of their time.
HEAVY = (
    "jax",
    "flax.nnx",
    "optax.contrib",
    "scipy.stats",
    "scipy.signal",
    "sklearn.metrics",
    "chz",
    "beartype",
    "einops",
)

Group = tuple[str, str]
# A mutant of a group; None stands for its tests without one.
Task = tuple[Group, str | None]


def main(arguments: list[str]) -> int:
    jobs = int(next((given.removeprefix("jobs=") for given in arguments if given.startswith("jobs=")), 2))
    names = [given for given in arguments if not given.startswith("jobs=")]
    tasks: list[Task] = []
    for group, mutants in MUTANTS.items():
        chosen = [name for name in mutants if not names or any(part in f"{group[0]} {name}" for part in names)]
        # Without one at last, when as much comes out of the cache of compiled programs as in the mutants' runs.
        tasks += [(group, name) for name in chosen] + [(group, None)] * bool(chosen)
    texts = {task: mutated(*task) for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "cache")
        trees = [copy(Path(folder) / str(job)) for job in range(jobs)]
        failed = run(tasks, texts, trees)
    found = [task for task in tasks if task[1] is not None]
    survivors = [f"{group[0]}  {name}" for group, name in found if not failed[group, name]]
    errors = [group[1] for group, name in tasks if name is None and failed[group, name]]
    print(f"{len(found)} mutants, {len(survivors)} survived ({len(survivors) / max(1, len(found)):.1%})")
    print(*(f"survived: {name}" for name in survivors), *(f"fails without: {tests}" for tests in errors), sep="\n")
    return int(bool(errors) or len(survivors) > MOST_SURVIVORS * len(found))


def mutated(group: Group, name: str | None) -> str:
    """The file's text with the mutation. Raises ValueError where what is to be replaced does not stand there once."""
    text = (ROOT / "mmjax" / group[0]).read_text()
    if name is None:
        return text
    old, new = MUTANTS[group][name]
    if text.count(old) != 1:
        raise ValueError(f"{name}: mmjax/{group[0]} has {text.count(old)} times {old!r}")
    text = text.replace(old, new)
    compile(text, group[0], "exec")
    return text


def prepare(cache: Path) -> None:
    """What all test processes have in common: imports, and a cache of compiled programs."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(8),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for name in HEAVY:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # the trees have their own


def copy(folder: Path) -> Path:
    """A copy of the tree, and beside it the real data that some tests read."""
    tree = shutil.copytree(ROOT, folder / ROOT.name, ignore=LEFT_OUT)
    if (shared := ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to(shared)
    return tree


def run(tasks: list[Task], texts: dict[Task, str], trees: list[Path]) -> dict[Task, bool]:
    """Whether the tests of each task fail, as many tasks at a time as there are trees."""
    failed: dict[Task, bool] = {}
    running: dict[int, tuple[Task, Path, str]] = {}
    waiting = list(enumerate(tasks))
    while waiting or running:
        if waiting and trees:
            (number, (group, name)), tree = waiting.pop(0), trees.pop()
            file = tree / "mmjax" / group[0]
            original = file.read_text()
            file.write_text(texts[group, name])
            os.utime(file, (10**9 + number,) * 2)  # Python compiles what is not of the same second
            running[start(tree, group[1])] = ((group, name), tree, original)
            continue
        pid, status = os.wait()
        task, tree, original = running.pop(pid)
        (group, name), code = task, os.waitstatus_to_exitcode(status)
        (tree / "mmjax" / group[0]).write_text(original)
        trees.append(tree)
        if code > 2 or (code and name is None):  # no test was found, or one fails for itself
            print((tree.parent / "output").read_text()[-2000:])
        failed[task] = code != 0
        outcome = ("killed" if failed[task] else "survived") if name else ("FAILS" if failed[task] else "passes")
        print(f"{'too long' if code < 0 else outcome:8}  {group[0]}  {name or group[1]}", flush=True)
    return failed


def start(tree: Path, tests: str) -> int:
    """Runs tests in a process of its own, whose id is returned."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        signal.alarm(10 * LIMIT)  # one that waits for ever takes none
        output = os.open(tree.parent / "output", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.path[0] = str(tree)
        file, *more = shlex.split(tests)
        code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", f"tests/{file}", *more])
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
