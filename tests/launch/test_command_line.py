"""The frame of commands: exit codes, the one line of an error, help, and the experiments there are."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import chz
import pytest

from launch import command_line
from launch.command_line import Subjects, main
from mmjax.errors import Diverged, Preempted, UserError

ROOT = Path(__file__).resolve().parents[2]


@chz.chz
class Layer:
    """A layer of something."""

    depth: int = chz.field(default=2, doc="how many in a row")


@chz.chz
class Wide(Layer):
    """A layer that is wider.

    Much wider.
    """

    shape: tuple[int, ...] = (8, 8)


@chz.chz
class Tree:
    layers: Mapping[str, Layer | None]
    last: Layer = chz.field(default=Wide(), doc="what comes last")
    rate: float = 1e-3
    """How fast
    it goes."""
    mode: Literal["fast", "exact"] = chz.field(default="fast", doc="speed or care")
    name: str = "tree"
    folder: str = chz.field(
        default=None, x_type=str | None, converter=chz.mungers.if_none(lambda tree: f"runs/{tree.name}")
    )


TREES = {
    "small": Tree(layers={"a": Layer(depth=5), "b": None}, rate=0.1),
    "large": Tree(layers={}, last=Layer()),
}
SUBJECTS = Subjects("tree", lambda: {"small": "A small one.", "large": ""}, TREES.__getitem__)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def answer(*words: str, command: Callable[[Any], Any] = lambda tree: Path(tree.folder)) -> int:
    return main(command, "Grows a tree.", words, SUBJECTS)


def test_the_path_of_the_result_is_the_last_line(capsys: pytest.CaptureFixture[str]):
    def grow(tree: Tree) -> Path:
        print("growing")
        return Path(tree.folder, str(tree.rate))

    assert answer("small", "name=oak", "rate=2e-3", command=grow) == 0
    assert capsys.readouterr() == ("growing\nruns/oak/0.002\n", "")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (75, 75), (1, 1)])
def test_a_command_may_return_its_exit_code(result: int | None, code: int, capsys: pytest.CaptureFixture[str]):
    assert answer("small", command=lambda tree: result) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["smal"], "unknown tree smal; the nearest is small; there are small, large"),
        (["../small"], "unknown tree ../small; the nearest is small; there are small, large"),
        (["rate=1", "small"], "the first word must be the name of the tree, not rate=1"),
        (["--rate", "small"], "the first word must be the name of the tree, not --rate"),
        (
            ["small", "depth=1"],
            "unknown key depth; the nearest is last.depth; the top level has layers, last, rate, mode, name, folder",
        ),
        (["small", "rate=a\nb"], "rate=a b: expected float"),
        (["small", "rate=a", "--help"], "rate=a: expected float"),
        (["small", "folder=runs/\udcff"], "'folder=runs/\\udcff' is not UTF-8"),
        (
            ["small", "last.depth=9223372036854775808"],
            "last.depth=9223372036854775808: must lie between -2147483647 and 2147483647",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]):
    assert answer(*words, command=lambda tree: pytest.fail("ran")) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_exit_codes_of_what_a_command_raises(capsys: pytest.CaptureFixture[str]):
    def raising(error: BaseException) -> Callable[[Any], Any]:
        def command(tree: Tree) -> None:
            raise error

        return command

    assert answer("small", command=raising(UserError("two\nlines"))) == 2
    assert capsys.readouterr() == ("", "error: two lines\n")
    assert answer("small", command=raising(Diverged("not finite"))) == 1
    assert capsys.readouterr() == ("", "error: not finite\n")
    assert answer("small", command=raising(Preempted("stopped after step 7"))) == 75
    assert capsys.readouterr() == ("", "stopped after step 7\n")
    assert answer("small", command=raising(KeyboardInterrupt())) == 75
    assert capsys.readouterr() == (
        "",
        "interrupted; the same command goes on from what was saved, if anything was\n",
    )
    with pytest.raises(ZeroDivisionError):
        answer("small", command=raising(ZeroDivisionError()))


def test_help_lists_every_key_with_its_value_and_where_that_is_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["/somewhere/launch/grow.py"])
    assert answer("small", "--help", "last.depth=7", "layers.c=Wide", command=lambda tree: pytest.fail("ran")) == 0
    assert capsys.readouterr().out == textwrap.dedent("""\
        usage: python -m launch.grow small key=value ...

        Grows a tree.

          rate=0.1            How fast it goes. (float, from tree small)
          mode=fast           speed or care (fast | exact)
          name=tree           (text)
          folder=runs/tree    (text | None)
          layers=a,b,c        (entries of Layer | Wide | None, from tree small)
          layers.a=Layer      A layer of something. (Layer | Wide | None, from tree small)
          layers.a.depth=5    how many in a row (int, from tree small)
          layers.b=None       (Layer | Wide | None, from tree small)
          layers.c=Wide       A layer that is wider. (Layer | Wide | None, from command line)
          layers.c.depth=2    how many in a row (int)
          layers.c.shape=8,8  (int,...)
          last=Wide           what comes last (Layer | Wide)
          last.depth=7        how many in a row (int, from command line)
          last.shape=8,8      (int,...)

        --help KEY says what KEY can be and what is below it.
        """)


def test_help_of_a_key_lists_what_is_below_it_and_its_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["/somewhere/launch/grow.py"])
    page = textwrap.dedent("""\
          last=Layer    what comes last (Layer | Wide, from command line)
          last.depth=2  how many in a row (int)

        choices of last:
          Layer  A layer of something.
              depth=2
          Wide  A layer that is wider.
              depth=2 shape=8,8
        """)
    for words in (["--help", "last"], ["--help=last"]):
        assert answer("small", "last=Layer", *words, command=lambda tree: pytest.fail("ran")) == 0
        assert capsys.readouterr().out == page
    assert answer("small", "--help", "layers.a.depth") == 0
    assert capsys.readouterr().out == "  layers.a.depth=5  how many in a row (int, from tree small)\n"
    assert answer("small", "--help", "layers") == 0
    assert "choices of layers.NAME:\n  Layer  A layer of something.\n" in capsys.readouterr().out
    assert answer("small", "--help", "lats") == 2
    assert capsys.readouterr().err.startswith("error: unknown key lats; the nearest is last; ")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["scenes", "cifar10_vqgan", "pretrain_10b"])
def test_help_of_an_experiment_fits_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    nothing = lambda experiment: None  # noqa: E731
    for words, most in ((["--help"], 40), (["--help", "model.fusion"], 60), (["--help", "seed=3"], 43)):
        assert main(nothing, "Trains an experiment.", [name, *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= most
        assert max(map(len, lines)) <= columns
    assert "  seed=3" in lines


def test_a_command_shows_its_own_keys_without_a_subject(capsys: pytest.CaptureFixture[str]):
    subjects = Subjects("tree", dict, TREES.__getitem__, keys=Tree)
    for words in (["--help"], ["--help=rate"]):
        assert main(lambda tree: pytest.fail("ran"), "Grows a tree.", words, subjects) == 0
        assert "How fast it goes. (float)\n" in capsys.readouterr().out


def test_without_a_subject_they_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/launch/grow.py"])
    listing = textwrap.dedent("""\
        usage: python -m launch.grow TREE key=value ...

        Grows a tree.

        trees:
          small  A small one.
          large

        modules=PACKAGE.MODULE[,...] imports modules of your own first; their classes are choices, too.
        python -m launch.grow TREE --help lists the keys of one.
        """)
    assert answer("--help") == 0
    assert capsys.readouterr() == (listing, "")
    assert answer() == 2
    assert capsys.readouterr() == (listing, "error: no tree is named; the first word must be one\n")


def test_a_command_without_a_subject(capsys: pytest.CaptureFixture[str]):
    seen: list[Wide] = []
    assert main(seen.append, "Makes a layer.", ["depth=3"], Wide) == 0
    assert seen == [Wide(depth=3)]
    assert main(seen.append, "Makes a layer.", ["--help", "depth=3"], Wide) == 0
    assert "  depth=3    how many in a row (int, from command line)" in capsys.readouterr().out
    assert main(seen.append, "Makes a layer.", ["width=3"], Wide) == 2


SCRIPT = """
import sys
from pathlib import Path
import chz
from launch import command_line
@chz.chz
class Tree:
    rate: float = 1.0
def grow(tree):
    if tree.rate > 2:
        raise RuntimeError("too fast")
    print("x" * 100_000)
    return Path("result")
code = command_line.main(grow, "Grows.", None, Tree)
assert "jax" not in sys.modules
sys.exit(code)
"""


def process(words: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, **options)


def test_exit_codes_of_processes():
    wrong, failed, done = process(["rte=1"]), process(["rate=3"]), process(["rate=2"])
    out, err = wrong.communicate(timeout=60)
    assert (wrong.returncode, out, err.count("\n")) == (2, "", 1)
    assert err == "error: unknown key rte; the nearest is rate; the top level has rate\n"
    out, err = failed.communicate(timeout=60)
    assert failed.returncode == 1
    assert err.startswith("Traceback")
    assert err.endswith("RuntimeError: too fast\n")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out.splitlines()[-1], err) == (0, "result", "")


def test_help_into_a_closed_pipe_is_no_failure():
    asked = process(["--help"])
    assert asked.stdout is not None
    assert asked.stderr is not None
    asked.stdout.close()
    assert asked.wait(timeout=60) == 0
    assert asked.stderr.read() == ""
    asked.stderr.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of `experiments`."""
    monkeypatch.setattr(command_line, "EXPERIMENTS_FOLDER", tmp_path)
    return tmp_path


def test_experiments_are_functions_called_as_their_file(folder: Path):
    (folder / "one.py").write_text('"""Of the file."""\ndef one():\n    """Learns one thing.\n\n    More.\n    """\n')
    (folder / "two.py").write_text('"""Of the file."""\nraise SystemError\ndef two(): ...\n')
    (folder / "sizes.py").write_text("def sizes_10b(): ...\ndef sizes_2b(): ...\ndef sized(): ...\n")
    (folder / "helper.py").write_text("def other(): ...\n")
    (folder / "__init__.py").write_text("")
    (folder / "broken.py").write_text("def broken(:\n")
    names = command_line.experiment_names()
    assert list(names) == ["broken", "one", "sizes_10b", "sizes_2b", "two"]
    assert (names["one"], names["two"]) == ("Learns one thing.", "Of the file.")
    assert names["broken"].startswith("(no valid Python: ")


@pytest.mark.parametrize("name", ["twos", "../one", "one/", ".one", "os", "helper", ""])
def test_no_other_file_can_be_named(name: str, folder: Path):
    (folder / "one.py").write_text("def one(): ...\n")
    (folder / "helper.py").write_text("raise SystemError\n")
    with pytest.raises(UserError, match=r"^unknown experiment .*; the nearest is one; there are one$"):
        command_line.load_experiment(name)


def test_others_may_be_named_where_that_is_said(capsys: pytest.CaptureFixture[str]):
    subjects = Subjects("folder", lambda: {"here": ""}, lambda name: Tree(layers={}, name=name), others=True)
    for name in ("here", "some/where else"):
        assert main(lambda tree: Path(tree.folder), "Grows a tree.", [name], subjects) == 0
        assert capsys.readouterr() == (f"runs/{name}\n", "")
    assert main(lambda tree: pytest.fail("ran"), "Grows a tree.", ["name=there"], subjects) == 2
    assert capsys.readouterr().err == "error: the first word must be the name of the folder, not name=there\n"
