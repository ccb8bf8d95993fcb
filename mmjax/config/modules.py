"""A user's own modules: importing them by name or file, and the digests by which a change is noticed."""

import hashlib
import importlib
import importlib.util
import keyword
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax import files
from mmjax.config import tree
from mmjax.config.schema import is_builtin
from mmjax.errors import UserError

Digests = dict[str, dict[str, str]]
"""By module: the path of its file and the file's SHA-256."""


def import_all(names: Iterable[str]) -> None:
    """Import modules, from the working directory too, so that their classes are choices. Raises UserError."""
    for name in names:
        if name.endswith(".py"):
            raise UserError(f"modules={name}: name a module, not its file: modules={name.removesuffix('.py')}")
        import_module(name)


def import_module(name: str) -> ModuleType:
    """The module of that dotted name, from the working directory too. Raises UserError with its own error."""
    if not is_module_name(name):
        raise UserError(f"{name!r} is not the name of a module; write for example my_package.fusions")
    _add_path(Path.cwd())
    return _import(name)


def import_file(path: Path) -> ModuleType:
    """Imports a file as the module of its name, with its folder on `sys.path`.

    Raises UserError with the file's own error.
    """
    path = path.absolute()
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = path.stem
    if not is_module_name(name):
        raise UserError(f"{path} cannot be imported under its name; rename it to letters, digits and _")
    _add_path(path.parent)
    module = _import(name)
    found = getattr(module, "__file__", None)
    if found is None or not Path(found).exists() or not path.samefile(found):
        raise UserError(f"{path} has the name of another module, {found or name}; rename the file")
    return module


def is_module_name(name: str) -> bool:
    """Whether a text can be a module's dotted name."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def explain(error: BaseException, file: str | None = None) -> str:
    """An exception in one line: type, text, and where it was raised, in `file` if it passed through that."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    frames = [frame for frame in frames if frame.filename == file] or frames
    place, line = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
    if isinstance(error, SyntaxError):
        text, place, line = f"{type(error).__name__}: {error.msg}", error.filename, error.lineno
    return f"{text} ({place}, line {line})" if place else text


def digests(experiment: Any) -> Digests:
    """The digests of the user's files that define an experiment's classes; a notebook has none.

    Everything else that an experiment's file says is in the experiment itself.
    """
    nodes = tree.tree_of_value(experiment, "", type(experiment), "experiment", final=True).walk()
    classes = [node.cls for node in nodes if isinstance(node, tree.ClassNode)]
    found = {}
    for name in sorted({cls.__module__ for cls in classes if not is_builtin(cls)}):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and (content := _content(path)) is not None:
            found[name] = {"file": str(Path(path).absolute()), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def changed(old: Digests, new: Digests) -> list[str]:
    """A line about each module whose file is another one than it was."""
    return [
        f"{name} ({entry['file']}) is not the file it was when the run last trained"
        for name, entry in new.items()
        if name in old and old[name]["sha256"] != entry["sha256"]
    ]


def _content(path: str) -> bytes | None:
    try:
        return files.read_regular(path)
    except OSError:
        return None


def _add_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import(name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"there is no module {name}, in {os.getcwd()} or among what is installed (No module named {error.name})"
            ) from error
        spec = importlib.util.find_spec(name) if "." not in name else None
        raise UserError(f"{name} cannot be imported: {explain(error, spec.origin if spec else None)}") from error
