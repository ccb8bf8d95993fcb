"""SLURM: a batch script for `sbatch`."""

import re

import chz

from mmjax.errors import UserError

from .job import Job, fill

# Hours of the longest time limit that can be asked for.
LONGEST = 8784


@chz.chz
class Slurm(Job):
    """A SLURM batch job: one task per node, with all its devices; requeued on exit code 75."""

    accelerator: str = chz.field(default="gpu", doc="gpu, a GPU type of the site (--gpus-per-node=TYPE:n), or cpu")
    devices: int = chz.field(default=8, doc="GPUs of each node")
    cpus: int | None = chz.field(default=None, doc="CPU cores of each node; none: whole nodes")
    hours: float = chz.field(default=24.0, doc="time limit of one stretch; the job goes on in the next")
    partition: str | None = chz.field(default=None, doc="as in sbatch")
    account: str | None = chz.field(default=None, doc="as in sbatch")
    project_dir: str = chz.field(default=".", doc="the checkout, seen by all nodes")
    python: str = chz.field(default="python", doc="the Python to use, for example of a virtual environment")

    @chz.validate
    def _directives(self):
        # These stand in #SBATCH lines, which no shell reads: they are words there, not quoted.
        for key, value in (("accelerator", self.accelerator), ("partition", self.partition), ("account", self.account)):
            if value is not None and not re.fullmatch(r"[\w.,@/-]+", value):
                raise UserError(f"{key}={value}: must be made of letters, digits and _ . , @ / -")
        if self.devices < 1 or (self.cpus is not None and self.cpus < 1):
            raise UserError("devices and cpus must be at least 1")
        if not 0 < self.hours <= LONGEST:
            raise UserError(f"hours={self.hours:g}: must lie between 0 and {LONGEST}, a year")
        if self.hours * 3600 <= self.grace:
            raise UserError(f"hours={self.hours:g} is not longer than grace={self.grace} seconds")

    def render(self, command: list[str]) -> str:
        gpus = {"cpu": None, "gpu": f"{self.devices}"}.get(self.accelerator, f"{self.accelerator}:{self.devices}")
        minutes = max(1, round(self.hours * 60))
        return fill("slurm.sh.j2", job=self, gpus=gpus, minutes=minutes, program=self.program(self.python, command))
