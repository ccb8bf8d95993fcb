"""The command after `--` of `launch.local` and `launch.cluster`, with its own words."""

import importlib.util

from mmjax.errors import UserError


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first `--`, and those after it."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def program(python: str, command: list[str]) -> list[str]:
    """A command of `launch` as a program and arguments. Raises UserError if there is no such command."""
    if not command:
        raise UserError("say after -- what to run, for example: -- train scenes train.steps=200")
    name = command[0]
    if not name.isidentifier() or importlib.util.find_spec(f"{__package__}.{name}") is None:
        raise UserError(f"after -- must come a command of launch, such as train, and there is no launch.{name}")
    return [python, "-m", f"{__package__}.{name}", *command[1:]]
