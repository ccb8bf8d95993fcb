"""Cloud TPU: a script of `gcloud` commands that creates TPU VMs and runs a command on them."""

import re
import shlex

import chz

from mmjax.errors import UserError

from . import tpu
from .job import Job, fill

# On a host: PYTHON is the interpreter's name, and of Debian's package that has it with venv.
_INSTALL = (
    "mkdir -p mmjax && tar -C mmjax -xzf mmjax.tar.gz && cd mmjax && "
    "{ command -v PYTHON || { sudo apt-get -q update && sudo apt-get -q install -y PYTHON-venv; }; } && "
    "PYTHON -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
)


@chz.chz
class TpuVm(Job):
    """TPU VMs as a queued resource, with the command on every host, resumed after preemption."""

    zone: str | None = chz.field(default=None, doc="zone of the TPUs, as europe-west4-b")
    project: str | None = chz.field(default=None, doc="Google Cloud project; none: the one gcloud is set to")
    accelerator: str = chz.field(default="v5e", doc="v4, v5e, v5p or v6e")
    topology: str | None = chz.field(default=None, doc="of one slice, as 4x4; none: all nodes are one slice")
    devices: int = chz.field(default=4, doc="chips of each node")
    runtime: str | None = chz.field(default=None, doc="TPU software version; none: the usual one of the accelerator")
    spot: bool = chz.field(default=False, doc="spot TPUs, which may be taken away")
    setup: str | None = chz.field(default=None, doc="shell command for every host first: mounts the storage of run_dir")
    project_dir: str = chz.field(default=".", doc="the checkout on this machine, copied to the hosts")
    python: str = chz.field(default="python3.11", doc="the hosts' Python to make the virtual environment with")

    @chz.validate
    def _place(self):
        if self.accelerator not in tpu.TPUS:
            raise UserError(f"accelerator={self.accelerator}: the accelerators are {', '.join(tpu.TPUS)}")
        for key, value in (
            ("zone", self.zone),
            ("project", self.project),
            ("runtime", self.runtime),
            ("python", self.python),
        ):
            if value is not None and not re.fullmatch(r"[a-z0-9][-a-z0-9.:]*", value):
                raise UserError(f"{key}={value}: must be made of lower-case letters, digits and -")
        if self.devices < 1:
            raise UserError("devices must be at least 1")
        if self.run_dir is not None and not self.run_dir.startswith("/"):
            raise UserError(f"run_dir={self.run_dir}: must be the absolute path of a directory that all hosts share")

    def render(self, command: list[str]) -> str:
        self.require(zone="the zone of the TPUs", run_dir="a directory that all hosts see, not on their own disks")
        slices = tpu.slices(self.accelerator, self.nodes, self.devices, self.topology)
        kind = [f"--accelerator-type={slices.tpu.type}-{slices.chips * slices.tpu.cores}"]
        if not slices.usual:
            kind = [f"--type={slices.tpu.type}", f"--topology={slices.topology}"]
        run = ["env", "MMJAX_COORDINATOR=auto", "PYTHONUNBUFFERED=1", *self.program(".venv/bin/python", command)]
        return fill(
            "tpu_vm.sh.j2",
            job=self,
            slices=slices,
            kind=[*kind, f"--runtime-version={self.runtime or slices.tpu.runtime}", *(["--spot"] if self.spot else [])],
            install=_INSTALL.replace("PYTHON", self.python),
            run=f"cd mmjax && exec {shlex.join(run)}",
        )
