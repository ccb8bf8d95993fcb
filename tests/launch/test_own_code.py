"""Modules of the user's own and experiments in any file: what is found, and what is wrong with them in a sentence."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import chz
import pytest

from launch import command_line
from mmjax.errors import UserError

MADE = """
import chz
from experiments.interactions import interactions

def {name}():
    return chz.replace(interactions(), name="{name}")
"""


@chz.chz
class Nothing:
    """A subject without keys."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(map(textwrap.dedent, texts)))


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        command_line.load_experiment(name)
    return str(caught.value)


def test_a_file_gives_the_function_of_its_name_or_the_only_one_or_the_one_asked_for(here: Path):
    write(here / "two.py", MADE.format(name="two"), MADE.format(name="other"), "def _hidden(): ...\n")
    write(here / "some" / "only.py", MADE.format(name="made"), "def _hidden(): ...\n")
    assert command_line.load_experiment("two.py").name == "two"
    assert command_line.load_experiment("two.py:other").name == "other"
    assert command_line.load_experiment(str(here / "some" / "only.py")).name == "made"


def test_a_module_gives_its_function(here: Path):
    write(here / "package" / "mine.py", MADE.format(name="made"))
    assert command_line.load_experiment("package.mine:made").name == "made"


def test_a_file_of_experiments_is_that_experiment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(command_line.EXPERIMENTS_FOLDER.parent)
    before = [*sys.path]
    assert command_line.load_experiment("experiments/interactions.py").name == "interactions"
    assert command_line.load_experiment("experiments/pretrain.py:pretrain_2b").name == "pretrain_2b"
    assert sys.path == before


def test_what_is_wrong_with_a_file_is_a_sentence(here: Path):
    write(here / "several.py", "def one(): ...\ndef two(): ...\n")
    write(here / "nothing.py", "number = 3\n")
    write(here / "broken.py", "number = 3\ndef broken(:\n")
    write(here / "failing.py", "import math\n\nmath.sqrt(-1)\n")
    write(here / "needy.py", "import not_installed_at_all\n")
    write(here / "leaving.py", "raise SystemExit\n")
    write(here / "text.py", "def text():\n    return 'text'\n")
    write(here / "raising.py", "def raising():\n    deeper()\ndef deeper():\n    return {}['key']\n")
    write(here / "json.py", "def json(): ...\n")
    write(here / "my-own.py", "def own(): ...\n")
    import json

    assert refusal("several.py") == ("several.py has no function several: it has one, two; name one as several.py:NAME")
    assert refusal("several.py:three").startswith("several.py has no function three: it has one, two; ")
    assert refusal("nothing.py") == "nothing.py has no function nothing: it has no function at all"
    assert refusal("nothing.py:number").startswith("nothing.py has no function number")
    assert refusal("nowhere.py") == f"there is no file {here}/nowhere.py"
    assert refusal("broken.py").startswith("broken cannot be imported: SyntaxError: ")
    assert refusal("broken.py").endswith(f"({here}/broken.py, line 2)")
    assert refusal("failing.py") == (
        f"failing cannot be imported: ValueError: math domain error ({here}/failing.py, line 3)"
    )
    assert refusal("needy.py") == (
        "needy cannot be imported: ModuleNotFoundError: No module named 'not_installed_at_all' "
        f"({here}/needy.py, line 1)"
    )
    assert refusal("leaving.py") == f"leaving cannot be imported: SystemExit ({here}/leaving.py, line 1)"
    assert refusal("text.py") == "text.py: text() returned str, not an Experiment"
    assert refusal("raising.py") == f"raising.py: raising() raised KeyError: 'key' ({here}/raising.py, line 4)"
    assert refusal("json.py") == f"{here}/json.py has the name of another module, {json.__file__}; rename the file"
    assert (
        refusal("my-own.py")
        == f"{here}/my-own.py cannot be imported under its name; rename it to letters, digits and _"
    )


@pytest.mark.parametrize("name", [":", "a:", ":b", "a b:c", "a:b c", "class:x", "a..b:c"])
def test_what_names_no_module_is_an_unknown_experiment(name: str, here: Path):
    assert refusal(name).startswith(f"unknown experiment {name}; the nearest is ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["modules=nowhere"], "there is no module nowhere, in {here} or among what is installed"),
        (["modules=nowhere.deeper"], "there is no module nowhere.deeper, in {here} or among what is installed"),
        (["modules=bad"], "bad cannot be imported: ZeroDivisionError: division by zero ({here}/bad.py, line 1)"),
        (["modules=fine,bad"], "bad cannot be imported: ZeroDivisionError: division by zero ({here}/bad.py, line 1)"),
        (["modules=fine.py"], "modules=fine.py: name a module, not its file: modules=fine"),
        (["modules=fi ne"], "'fi ne' is not the name of a module; write for example my_package.fusions"),
        (["modules="], "modules= has no value; write modules=VALUE"),
        (["modules=fine", "modules=fine"], "modules is given twice: fine and fine; give it once"),
    ],
)
def test_what_is_wrong_with_modules_is_a_sentence(words: list[str], line: str, here: Path, capsys):
    write(here / "bad.py", "1 / 0\n")
    write(here / "fine.py", "")
    assert command_line.main(lambda _: pytest.fail("ran"), "", ["interactions", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line.format(here=here)}")


def test_modules_are_imported_before_the_subject_is_loaded(here: Path):
    write(here / "fine.py", "")
    write(here / "package" / "parts.py", "")

    def load(name: str) -> Nothing:
        assert {"fine", "package.parts"} <= set(sys.modules)
        return Nothing()

    subjects = command_line.Subjects("thing", dict, load, others=True)
    assert command_line.main(lambda _: None, "", ["any", "modules=fine, package.parts"], subjects) == 0
