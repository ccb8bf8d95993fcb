"""The settings common to all schedulers, and the templates of their scripts."""

import abc
import json
import re
import shlex
from pathlib import Path

import chz
import jinja2

from mmjax.errors import UserError

from .. import request

# A DNS label with room for what JobSet adds to it (-node-INDEX-INDEX).
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@chz.chz
class Job(abc.ABC):
    """A command on `nodes` machines, one process each, restarted while it ends with exit code 75."""

    nodes: int = chz.field(default=1, doc="how many machines")
    name: str = chz.field(default="mmjax", doc="the job's name: lower-case letters, digits and -")
    run_dir: str | None = chz.field(default=None, doc="run directory, seen by all nodes; handed to the command")
    grace: int = chz.field(default=120, doc="seconds from SIGTERM to the end, in which a checkpoint is written")
    out: str | None = chz.field(default=None, doc="file for the rendering instead of standard output")

    @chz.validate
    def _values(self):
        for key, value in chz.asdict(self).items():
            if isinstance(value, str) and not value.isprintable():
                raise UserError(f"{key}={value!r}: line breaks and control characters cannot be rendered")
        for key, count in (("nodes", self.nodes), ("grace", self.grace)):
            if count < 1:
                raise UserError(f"{key}={count}: must be at least 1")
        if not _NAME.fullmatch(self.name):
            raise UserError(f"name={self.name}: must be 1 to 40 lower-case letters, digits and -, a letter first")

    @abc.abstractmethod
    def render(self, command: list[str]) -> str:
        """The script or manifest that runs `command`, a command of `launch` with its arguments."""

    def require(self, **meanings: str) -> None:
        """Raises UserError where one of these keys is None; `meanings` says what each is."""
        for key, meaning in meanings.items():
            if chz.asdict(self)[key] is None:
                raise UserError(f"{key} is not given: set {key} to {meaning}")

    def program(self, python: str, command: list[str]) -> list[str]:
        """The command as a program and its arguments, `run_dir` last."""
        if any(word.lower() == "fresh=true" for word in command):
            raise UserError("fresh=true: a job that is started again would lose its checkpoints; set another run_dir")
        words = [word for word in command if not word.startswith("run_dir=")]
        return [*request.program(python, words), *([f"run_dir={self.run_dir}"] if self.run_dir else [])]


def fill(template: str, **values) -> str:
    """Renders a template; its filters `sh` and `json` quote a value for a shell and for YAML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.get_template(template).render(values)
