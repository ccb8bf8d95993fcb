"""Write a job for a scheduler: `python -m launch.cluster slurm|gke|tpu_vm key=value ... -- train ...`.

Renders a SLURM batch script, a GKE JobSet manifest or a script of TPU VM commands, to standard output or into
`out=FILE` (then the last line on standard output is the file's path). Starts nothing.
"""

import sys
from pathlib import Path

from mmjax.errors import UserError
from mmjax.files import local_path, write_atomic

from .. import command_line, request
from .gke import Gke
from .job import Job
from .slurm import Slurm
from .tpu_vm import TpuVm

SCHEDULERS: dict[str, type[Job]] = {"slurm": Slurm, "gke": Gke, "tpu_vm": TpuVm}


def main(words: list[str]) -> int:
    """Runs the command line."""
    keys, command = request.split(words)
    subjects = command_line.Subjects(
        kind="scheduler",
        names=lambda: {name: str(cls.__doc__).splitlines()[0] for name, cls in SCHEDULERS.items()},
        load=SCHEDULERS.__getitem__,
    )
    description = "Renders what a scheduler is given to run the command after --, on stdout or into out=FILE."

    def answer() -> int:
        given = [*keys, *_run_dir(keys, command)]
        return command_line.main(lambda job: write(job.render(command), job.out), description, given, subjects)

    return command_line.run(answer)


def write(rendering: str, out: str | None) -> Path | None:
    """Prints the rendered job, or writes it to a file (executable if it is a script)."""
    if out is None:
        print(rendering, end="")
        return None
    return write_atomic(local_path(out), rendering, 0o755 if rendering.startswith("#!") else None)


def _run_dir(keys: list[str], command: list[str]) -> list[str]:
    """The command's own `run_dir=`, which the job needs too."""
    stated, given = ([word for word in words if word.startswith("run_dir=")] for words in (keys, command))
    if stated and given and stated != given:
        raise UserError(f"{stated[0]} before -- and {given[0]} after it: say it once")
    return [] if stated or not keys else given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
