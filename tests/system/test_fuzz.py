"""Command lines and files of run directories that nobody would write: each is answered, at once and in a line.

`pytest tests/system/test_fuzz.py --fuzz 50000` makes up more of them.
"""

import ast
import contextlib
import functools
import io
import json
import os
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import chz
import pytest

from launch import ablate, benchmark, command_line, evaluate, export, generate, local, plan, prepare, profile
from launch.benchmarks import runner
from launch.cluster import __main__ as cluster
from mmjax.ablation.cell import Cell
from mmjax.config import experiment_file
from mmjax.config.overrides import config_tree
from mmjax.config.schema import choices
from mmjax.config.tree import ConfigNode
from mmjax.data.loader import Data
from mmjax.data.sources import TABLE
from mmjax.errors import UserError
from mmjax.reports.curves import curve_sections
from mmjax.training.metrics import MetricsLog, read_history, read_summary, write_summary

# Seconds of computing that one answer may take, and of waiting.
LONGEST, PATIENCE = 10, 100

NUMBERS = ("-1", "0", "1", "2", "7", "16", "0.5", "1e-30", "1e30", "1e39", "1e308", "-1e308", "1e999", "nan", "-inf")
LARGE = ("2147483647", "2147483648", "9223372036854775808", "1" + "0" * 23, "9" * 5000, "-" + "9" * 400, "0x10", "1_0")
WORDS = ("None", "none", "true", "FALSE", "()", "[]", "(1,2", "1,2,3", ",", ",,1", "{}", "''", "a", "a,b/c,d", "all")
TEXTS = (
    "\n\n",
    "\x1b[2J",
    "\x00",
    "\u202egnp",
    "\u2028",
    "é",
    "日本語",
    "😀",
    "²",
    "٣",
    "\udcff\udc80",
    " ",
    "=",
    "a b",
)
CODE = ("os:system", "lambda: 1", "$(id)", "`id`", "%s%n", "^(([a-z_/]+)+)+$X", "mmjax.model:Model", "__class__")
PATHS = ("~nobody-of-this-name/x", "/dev/zero", "/dev/null", "/proc/self/mem", ".", "..", "a/" * 3000, "pipe", "~")
LONG = ("a" * 20000, "depth." * 4000, "x=" * 3000, "(" * 3000, "1," * 3000)
VALUES = (NUMBERS, LARGE, WORDS, TEXTS, CODE, PATHS, LONG)


class Reached(BaseException):
    """A command would have begun to work."""


class Late(BaseException):
    """An answer took too long."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        for clock in clocks:
            signal.setitimer(clock, 0)
        raise Late

    clocks = {signal.ITIMER_PROF: (signal.SIGPROF, LONGEST), signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE)}
    before = {number: signal.signal(number, late) for number, _ in clocks.values()}
    try:
        for clock, (_, seconds) in clocks.items():
            signal.setitimer(clock, seconds)
        yield
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def count(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--fuzz")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory, from whose parent's parent commands are given; a pipe lies there, too."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    run_dir = Path("runs", "first")
    experiment_file.write(command_line.load_experiment("interactions"), run_dir)
    return run_dir


@pytest.fixture
def commands(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> "dict[str, Command]":
    """All commands, up to where they would begin to work."""
    for owner, name in (
        *((Data, "fit_tokenizers"), (runner, "run"), (plan, "_compiled"), (plan, "_gpus"), (local, "run")),
        *((kind, "prepare") for kind in TABLE.values()),
    ):
        monkeypatch.setattr(owner, name, reached)
    monkeypatch.setattr("mmjax.profiling.profile.profile.profile", reached)
    monkeypatch.setattr(ast, "parse", functools.cache(ast.parse))  # all experiments' files, for every command line
    monkeypatch.setattr(Cell, "check", lambda self: None)
    monkeypatch.setattr(ablate, "ablate", lambda request: reached(ablate.plan(chz.replace(request, match="none"))))
    names = [*command_line.experiment_names()]
    runs = [str(run_dir), *PATHS, "runs", "runs/none"]
    tail = (["--", "train", "scenes"], ["--"], [], ["--", "prepare", "run_dir=a b"], ["--", "no-such"])
    return {
        "train": Command(lambda words: command_line.main(reached, "", words), names, command_line.load_experiment),
        "ablate": Command(ablate.main, names, ablate.load),
        "plan": Command(plan.main, names, plan.load),
        "profile": Command(profile.main, [*names, *runs, "compare"], lambda name: profile.load(names[0])),
        "evaluate": Command(evaluate.main, [*runs, "compare"], lambda name: evaluate.Evaluation(run_dir=name)),
        "generate": Command(generate.main, runs, lambda name: generate.Generation(run_dir=name)),
        "export": Command(export.main, runs, lambda name: export.Export(run_dir=name)),
        "benchmark": Command(benchmark.main, benchmark.NAMES, lambda name: benchmark.BenchmarkRequest(name=name)),
        "prepare": Command(prepare.main, [*prepare.SOURCES.names()], prepare.SOURCES.load),
        "local": Command(local.main, (), lambda _: local.Local, tail),
        "cluster": Command(cluster.main, [*cluster.SCHEDULERS], cluster.SCHEDULERS.__getitem__, tail),
    }


class Command:
    """A command, what its first word can be, and the keys that then follow."""

    def __init__(
        self,
        main: Callable[[list[str]], int],
        subjects: Sequence[str],
        load: Callable[[str], Any],
        tails: Sequence[list[str]] = ([],),
    ):
        self.main, self.subjects, self.load, self.tails = main, subjects, load, tails
        self._parts: dict[str, list[ConfigNode]] = {}

    def parts(self, subject: str) -> list[ConfigNode]:
        """The keys that can be given for a subject."""
        if subject not in self._parts:
            self._parts[subject] = [part for part in config_tree(self.load(subject), "").walk() if part.key]
        return self._parts[subject]

    def words(self, random: random.Random) -> list[str]:
        """A command line, a part of whose words is right."""
        subject = random.choice(self.subjects) if self.subjects else ""
        parts = self.parts(subject)
        words = [pair(random, parts) for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 6)))]
        if subject:
            words.insert(0, subject if random.random() < 0.95 else mutated(random, subject))
        if subject == "compare":
            words[1:1] = random.choices(["runs/first", "runs/first@3", "pipe", "a@b"], k=random.randrange(4))
        if random.random() < 0.1:
            words.insert(random.randrange(len(words) + 1), random.choice(("--help", "-h", "", "=", "-", "--x=1", "a")))
        return [*words, *random.choice(self.tails)]


def pair(random: random.Random, parts: Sequence[ConfigNode]) -> str:
    part = random.choice(parts)
    key = part.key if random.random() < 0.9 else mutated(random, part.key)
    kinds = [*choices(part.annotation)]
    if kinds and random.random() < 0.5:
        return f"{key}={random.choice(kinds)}"
    if random.random() < 0.3:
        return f"{key}={part.shown()}"
    return f"{key}={random.choice(random.choice(VALUES))}"


def mutated(random: random.Random, word: str) -> str:
    place = random.randrange(len(word) + 1)
    return random.choice(
        (
            word[:place] + word[place + 1 :],
            word[:place] + random.choice(random.choice(VALUES)) + word[place:],
            word[:place] + "." + word[place:],
            f"{word}.{random.choice(('0', '3', 'x', '9' * 4301, ''))}",
            word.swapcase(),
            word * random.choice((2, 2000)),
        )
    )


def answer(command: Command, words: list[str]) -> str:
    """How a command answers: "works", "refuses", or what is wrong with its answer."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
            code = command.main(list(words))
    except Reached:
        return "works"
    except Late:
        return "late: " + " ".join(traceback.format_exc().split()[-60:])
    except BaseException:
        return traceback.format_exc()[-1500:]
    lines = err.getvalue().splitlines()
    if code == 0 and not any("error:" in line for line in lines):
        return "works"
    if lines and lines[0].startswith("every run has train.ablation_steps="):  # what an ablation says first
        del lines[0]
    if code == 2 and len(lines) == 1 and lines[-1].startswith("error: "):
        return "refuses" if all(sign.isprintable() for sign in lines[-1]) else f"not printable: {lines[-1]!r}"
    return f"code {code}: {lines}"


def test_every_command_line_is_answered_in_a_line(commands: dict[str, Command], count: int):
    found: Counter[str] = Counter()
    wrong = []
    for number in range(count):
        numbered = random.Random(number)
        name = numbered.choice([*commands])
        words = commands[name].words(numbered)
        said = answer(commands[name], words)
        found[said if said in ("works", "refuses") else "wrong"] += 1
        if said not in ("works", "refuses"):
            wrong.append((number, name, [word[:200] for word in words], said))
    print(dict(found))
    assert not wrong, f"{len(wrong)} of {count}, the first: {wrong[:3]}"
    assert found["works"] > count // 20
    assert found["refuses"] > count // 2


# Files


def damaged(random: random.Random, content: bytes) -> bytes:
    """A file's content, changed as a disk, an editor or an attacker might."""
    place, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    kind = random.randrange(8)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + random.randbytes(random.choice((1, 3, 50))) + content[place:]
    if kind == 2:
        return content[:place] + content[end:]
    if kind == 3:
        return random.choice(
            (b"", b"\n", b"null", b"[]", b"{}", b'""', b"0", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5)
        )
    if kind == 4:
        return random.randbytes(random.randrange(200))
    lines = content.splitlines(keepends=True)
    chosen = random.randrange(len(lines))
    try:
        tree = json.loads(content if kind < 7 and len(lines[0]) < 3 else lines[chosen])
    except ValueError:
        return content[end:] + content[:place]
    changed = json.dumps(retyped(random, tree)).encode()
    return (
        changed if kind < 7 and len(lines[0]) < 3 else b"".join([*lines[:chosen], changed, b"\n", *lines[chosen + 1 :]])
    )


def retyped(random: random.Random, tree: Any) -> Any:
    """The same tree with something else in one place."""
    if isinstance(tree, dict | list) and tree and random.random() < 0.9:
        place = random.choice([*tree] if isinstance(tree, dict) else range(len(tree)))
        below = retyped(random, tree[place])
        if isinstance(tree, list):
            return [*tree[:place], below, *tree[place + 1 :]]
        fate = random.random()
        if fate < 0.1:
            return {name: value for name, value in tree.items() if name != place}
        return tree | ({f"{place}\x00": below} if fate < 0.2 else {place: below})
    nested: Any = 1
    for _ in range(random.choice((1, 400))):
        nested = [nested]
    others = (
        None,
        True,
        -1,
        0,
        0.5,
        2**31,
        10**400,
        1e308,
        float("nan"),
        "",
        "a",
        "\ud800",
        "a" * 10**4,
        [],
        {},
        nested,
    )
    return random.choice((*others, [tree], {"class": tree}, {"class": "os.system"}))


def special(random: random.Random, path: Path) -> None:
    """Something that is no regular file in a file's place."""
    path.unlink(missing_ok=True)
    random.choice(
        (
            lambda: os.mkfifo(path),
            lambda: path.mkdir(),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to(path),
            lambda: path.symlink_to("/proc/self/mem"),
        )
    )()


def check_files(path: Path, read: Callable[[], Any], count: int) -> None:
    """`read` either works or raises UserError, whatever lies at `path`, which is given back as it was."""
    content, wrong = path.read_bytes(), []
    found: Counter[str] = Counter()
    for number in range(count):
        numbered = random.Random(number)
        if numbered.random() < 0.02:
            special(numbered, path)
        else:
            path.write_bytes(damaged(numbered, content))
        try:
            with limited():
                read()
            found["works"] += 1
        except UserError as error:
            found["refuses"] += 1
            if len(str(error).splitlines()) != 1:
                wrong.append((number, str(error)))
        except BaseException:
            wrong.append((number, traceback.format_exc()[-1500:]))
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.write_bytes(content)
    print(path.name, dict(found))
    assert not wrong, f"{len(wrong)} of {count}, the first: {wrong[:3]}"
    assert found["refuses"] > count // 4


def test_a_damaged_experiment_is_refused_in_a_line(run_dir: Path, count: int):
    check_files(run_dir / experiment_file.FILE, lambda: experiment_file.read(run_dir), count)


def test_a_damaged_grid_is_refused_in_a_line(run_dir: Path, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cell, "check", lambda self: None)
    request = chz.replace(ablate.load("interactions"), match="none", choices="Sum,Concat", run_dir="runs/grid")
    with contextlib.redirect_stderr(io.StringIO()):
        cells, _, _ = ablate.plan(request)
    folder = Path("runs", "grid")
    ablate._claim(folder, request, cells)
    check_files(folder / ablate.GRID, lambda: ablate._claim(folder, request, cells), count)


def test_damaged_metrics_are_refused_in_a_line(run_dir: Path, count: int):
    log = MetricsLog(run_dir)
    for step in range(1, 30):
        log.write(step, {"train/loss": 1 / step, "train/label/accuracy": 0.5, "train/learning_rate": float("nan")})
    log.close()

    def read() -> None:
        curve_sections(read_history(run_dir))
        again = MetricsLog(run_dir, 20)
        again.write(21, {"train/loss": 1.0})
        again.close()

    check_files(run_dir / "metrics.jsonl", read, count)


def test_a_damaged_summary_is_refused_in_a_line(run_dir: Path, count: int):
    digests = {"parameters_digest": "0" * 64, "examples_digest": "0" * 64}
    write_summary(run_dir, fingerprint="0" * 16, step=9, seconds=1.5, metrics={"test/loss": 0.5}, **digests)
    check_files(run_dir / "summary.json", lambda: read_summary(run_dir), count)
