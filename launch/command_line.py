"""The frame of every command: `python -m launch.NAME SUBJECT key=value ...`.

A command is a function from the resolved configuration to the path of its result:

    if __name__ == "__main__":
        sys.exit(command_line.main(train, "Trains an experiment."))

Exit codes: 0 done; 2 the request is wrong, and one line on standard error says why; 75 interrupted and resumable;
1 failed. The last line on standard output is the path of the result.
"""

import ast
import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmjax.buckets import is_remote, service_error
from mmjax.config import modules
from mmjax.config.overrides import apply, config_tree, nearest, parse_pairs, resolve, split
from mmjax.errors import Diverged, Preempted, UserError
from mmjax.files import local_path

from . import help

if TYPE_CHECKING:
    from mmjax.config.experiment import Experiment

MODULES = "modules"
"""The key that every command with a subject has beside the subject's own: modules to import before it is loaded."""

__all__ = [
    "EXPERIMENTS",
    "Subjects",
    "load_experiment",
    "main",
    "own_folder",
    "parse_pairs",
    "resolve",
    "run",
    "say",
    "split",
]

INSTALLED = __package__.startswith("mmjax.")
"""Whether this is mmjax.launch of an installed mmjax, not launch of the checkout (see setup.py)."""
EXPERIMENTS_FOLDER = Path(__file__).resolve().parents[1] / "experiments"
EXPERIMENTS_PACKAGE = "mmjax.experiments" if INSTALLED else "experiments"
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 75
LONGEST = 44
LONGEST_LINE = 2000

Result = Path | int | None


@dataclasses.dataclass(frozen=True)
class Subjects:
    """What the first word of a command can name."""

    kind: str
    """What one is called: "experiment"."""
    names: Callable[[], dict[str, str]]
    """All of them, with a line about each."""
    load: Callable[[str], Any]
    """The configuration, a chz object, that the words after the name change."""
    others: bool = False
    """Whether more can be named than `names` tells, such as any path."""
    form: str | None = None
    """What is typed before the keys; None: the kind."""
    more: str | None = None
    """What else can be named, in a sentence."""
    keys: type | None = None
    """The chz class that `load` returns, where the command has keys of its own: shown without a subject, too."""


def main(
    command: Callable[[Any], Result],
    description: str,
    argv: Sequence[str] | None = None,
    subjects: "Subjects | type | None" = None,
) -> int:
    """Run a command on the configuration that its words ask for; returns the exit code.

    Args:
        command: returns the path of its result, or an exit code, or None in a process that has nothing to report.
        description: what the command does, in a sentence.
        argv: the words after the command's name; those of this process by default.
        subjects: what the first word names, experiments by default; or, for a command that has no subject, the chz
            class whose fields are its keys.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _answer(command, description, words, subjects or EXPERIMENTS))


def run(action: Callable[[], Result]) -> int:
    """Run `action`, print its path, and return the exit code; errors that are not the user's pass through."""
    try:
        result = action()
    except (UserError, Diverged) as error:
        say("error: " + _line(str(error)))
        return WRONG if isinstance(error, UserError) else FAILED
    except (Preempted, KeyboardInterrupt) as reason:
        say(
            " ".join(str(reason).split())
            or "interrupted; the same command goes on from what was saved, if anything was"
        )
        return INTERRUPTED
    except Exception as error:  # each service's package has its own
        reason = service_error(error)
        if reason is None:
            raise
        say(f"error: a service refused this or did not answer: {_line(reason)}")
        return FAILED
    if isinstance(result, int):
        return result
    if result is not None:
        say(str(result), sys.stdout)
    return DONE


def _answer(command: Callable[[Any], Result], description: str, words: list[str], subjects: Subjects | type) -> Result:
    """Answers a request for help, or runs the command."""
    for word in words:
        if any("\ud800" <= sign <= "\udfff" for sign in word):  # what Python makes of other bytes
            raise UserError(f"{word!r} is not UTF-8")
    pairs, asks, key = _split_help(words, needs_subject=not isinstance(subjects, type))
    if isinstance(subjects, type):
        usage, root = f"{_program()} key=value ...", config_tree(subjects, "given")
    else:
        said = split([word for word in pairs if word.startswith(f"{MODULES}=")])
        pairs = [word for word in pairs if not word.startswith(f"{MODULES}=")]
        modules.import_all(name.strip() for names in said.values() for name in names.split(","))
        if not pairs:
            if key and subjects.keys:
                root = config_tree(subjects.keys, "given")
                say("\n".join(help.subtree(root, None, key)), sys.stdout)
                return DONE
            say(_listing(description, subjects), sys.stdout)
            if not asks:
                raise UserError(f"no {subjects.kind} is named; the first word must be one")
            return DONE
        name = pairs.pop(0)
        usage = f"{_program()} {subjects.form or name} key=value ..."
        root = config_tree(_load(name, subjects), f"{subjects.kind} {name}")
    configuration = apply(root, pairs).make()
    if not asks:
        return command(configuration)
    if key:
        lines = help.subtree(root, configuration, key)
    else:
        lines = [f"usage: {usage}", "", *help.paragraph(description), "", *help.overview(root, configuration, pairs)]
        lines += ["", "--help KEY says what KEY can be and what is below it."]
    say("\n".join(lines), sys.stdout)
    return DONE


def _split_help(words: list[str], needs_subject: bool) -> tuple[list[str], bool, str | None]:
    """The words without `--help`, whether it is asked for, and its key: `--help KEY` or `--help=KEY`."""
    pairs: list[str] = []
    asks, key = False, None
    for word in words:
        if word in ("--help", "-h"):
            asks = True
        elif asks and key is None and "=" not in word and (pairs or not needs_subject):
            key = word
        elif word.startswith("--help="):
            asks, key = True, word.partition("=")[2]
        else:
            pairs.append(word)
    return pairs, asks, key


def _line(text: str) -> str:
    """A text as one line that a terminal shows as it is."""
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def own_folder(parent: str, name: str, *facts: str) -> str:
    """A folder for what has this name and is determined by these facts, and for nothing else."""
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return str(Path(parent, f"{name}-{digest[:6]}"))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line about progress to standard error, unless nobody reads it any more."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # `launch.train scenes --help | head` is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _program() -> str:
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.stem
    return f"{'mmjax ' if INSTALLED else 'python -m launch.'}{name}"


# What can be named


def experiment_names() -> dict[str, str]:
    """The experiments in `experiments/` by name, each with the first line of its docstring.

    They are the functions that are called as their file, or as their file and a size: `pretrain_2b` of `pretrain.py`.
    """
    found = {}
    for path in sorted(EXPERIMENTS_FOLDER.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            found[path.stem] = f"(no valid Python: {error})"
            continue
        for item in tree.body:
            if isinstance(item, ast.FunctionDef) and path.stem in (item.name, item.name.rpartition("_")[0]):
                found[item.name] = help.first_line(ast.get_docstring(item) or ast.get_docstring(tree))
    return found


def load_experiment(name: str) -> "Experiment":
    """The experiment of a name, FILE.py[:FUNCTION] or MODULE:FUNCTION.

    One of ours is what function NAME of a file in experiments/ returns. Raises UserError where there is none, or a
    value is wrong.
    """
    place = own_place(name)
    if place is not None and Path(place[0]).absolute() == EXPERIMENTS_FOLDER / f"{Path(place[0]).stem}.py":
        name, place = place[1] or Path(place[0]).stem, None
    if place is not None:
        return _load_own(*place)
    _check_name(name, EXPERIMENTS)
    file = name if (EXPERIMENTS_FOLDER / f"{name}.py").exists() else name.rpartition("_")[0]
    function = getattr(importlib.import_module(f"{EXPERIMENTS_PACKAGE}.{file}"), name)
    return _checked(function(), f"experiments/{file}.py: {name}()")


def own_place(name: str) -> tuple[str, str] | None:
    """The file or module and the function, which may be empty, where a subject's name is of that form."""
    if name.endswith(".py"):
        return name, ""
    place, _, function = name.rpartition(":")
    if place.endswith(".py") or (function.isidentifier() and modules.is_module_name(place)):
        return place, function
    return None


def _load_own(place: str, name: str) -> "Experiment":
    """The experiment of a user's function: the named one, the one called as its file, or the only one."""
    module = modules.import_file(local_path(place)) if place.endswith(".py") else modules.import_module(place)
    there = {
        key: function
        for key, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not key.startswith("_")
    }
    usual = module.__name__.rpartition(".")[2]
    if not name:
        name = next(iter(there)) if len(there) == 1 and not callable(getattr(module, usual, None)) else usual
    function = getattr(module, name, None)
    if not callable(function):
        listed = f"it has {', '.join(there)}; name one as {place}:NAME" if there else "it has no function at all"
        raise UserError(f"{place} has no function {name}: {listed}")
    where = f"{place}: {name}()"
    try:
        experiment = function()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} raised {modules.explain(error, module.__file__)}") from error
    return _checked(experiment, where)


def _checked(experiment: Any, where: str) -> "Experiment":
    """Raises UserError for what is not an experiment, or not a valid one."""
    from mmjax.config.experiment import Experiment

    if not isinstance(experiment, Experiment):
        raise UserError(f"{where} returned {type(experiment).__name__}, not an Experiment")
    try:
        config_tree(experiment, "given")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return experiment


def runs() -> dict[str, str]:
    """The run directories where runs are by default."""
    return {str(path.parent): "" for path in sorted(Path("runs").glob("*/experiment.json"))}


OWN = "FILE.py[:FUNCTION] or PACKAGE.MODULE:FUNCTION names an experiment of your own."
EXPERIMENTS = Subjects("experiment", experiment_names, load_experiment, others=True, more=OWN)


def _check_name(name: str, subjects: Subjects) -> None:
    names = list(subjects.names())
    if name not in names:
        near = f"the nearest is {nearest(name, names)}; there are {', '.join(names)}" if names else "there are none"
        raise UserError(f"unknown {subjects.kind} {name}; {near}")


def _load(name: str, subjects: Subjects) -> Any:
    if ("=" in name and not is_remote(name)) or name.startswith("-"):
        raise UserError(f"the first word must be the name of the {subjects.kind}, not {name}")
    if not subjects.others:
        _check_name(name, subjects)
    return subjects.load(name)


# Help


def _listing(description: str, subjects: Subjects) -> str:
    """What can be named, and the keys that the command itself has."""
    form = subjects.form or subjects.kind.upper()
    own = ["", "keys:", *help.own_keys(subjects.keys)] if subjects.keys else []
    more = [
        *([subjects.more] if subjects.more else []),
        f"{MODULES}=PACKAGE.MODULE[,...] imports modules of your own first; their classes are choices, too.",
        f"{_program()} {form} --help lists the keys of one.",
    ]
    return "\n".join(
        [
            *(f"usage: {_program()} {form} key=value ...", "", *help.paragraph(description), "", f"{subjects.kind}s:"),
            *(help.named(subjects.names()) or ["  (none)"]),
            *own,
            "",
            *(line for text in more for line in help.paragraph(text)),
        ]
    )
