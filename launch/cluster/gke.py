"""Google Kubernetes Engine: a JobSet manifest for `kubectl apply -f`."""

from pathlib import PurePosixPath

import chz

from mmjax.errors import UserError

from . import tpu
from .job import Job, fill

GPUS = {
    "t4": "nvidia-tesla-t4",
    "v100": "nvidia-tesla-v100",
    "l4": "nvidia-l4",
    "a100": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}


@chz.chz
class Gke(Job):
    """A JobSet on TPU slices or GPUs, restarted after every interruption, and `restarts` failures."""

    image: str | None = chz.field(default=None, doc="container image with the project and what it needs installed")
    claim: str | None = chz.field(default=None, doc="PersistentVolumeClaim (many writers) that holds the run directory")
    mount: str = chz.field(default="/mnt/mmjax", doc="where the claim is mounted")
    accelerator: str = chz.field(default="v5e", doc="v4, v5e, v5p, v6e, or a GPU: l4, a100, h100, h200, ...")
    topology: str | None = chz.field(default=None, doc="of one TPU slice, as 4x4; none: all nodes are one slice")
    devices: int = chz.field(default=4, doc="chips or GPUs of each node")
    spot: bool = chz.field(default=False, doc="on spot nodes")
    restarts: int = chz.field(default=3, doc="how often a failure (not an interruption) starts the job again")
    project_dir: str = chz.field(default="/app", doc="the checkout inside the image")
    python: str = chz.field(default="python", doc="the Python of the image")

    @chz.validate
    def _place(self):
        known = [*tpu.TPUS, *GPUS]
        if self.accelerator not in known:
            raise UserError(f"accelerator={self.accelerator}: the accelerators are {', '.join(known)}")
        if self.accelerator in GPUS and self.topology is not None:
            raise UserError(f"topology={self.topology}: only TPU slices have one")
        if self.devices < 1 or self.restarts < 0:
            raise UserError("devices must be at least 1 and restarts at least 0")
        for key, path in (("mount", self.mount), ("project_dir", self.project_dir)):
            if not path.startswith("/") or ":" in path:
                raise UserError(f"{key}={path}: must be an absolute path in the container, without a colon")
        if self.run_dir is not None and not PurePosixPath(self.run_dir).is_relative_to(self.mount):
            raise UserError(f"run_dir={self.run_dir} is not below mount={self.mount}, and would be lost with the pod")

    def render(self, command: list[str]) -> str:
        self.require(image="a container image", claim="the PersistentVolumeClaim of the run directory")
        job = self if self.run_dir else chz.replace(self, run_dir=f"{self.mount}/{self.name}")
        tpus = None
        if self.accelerator in tpu.TPUS:
            tpus = tpu.slices(self.accelerator, self.nodes, self.devices, self.topology)
            nodes = {
                "cloud.google.com/gke-tpu-accelerator": tpus.tpu.gke,
                "cloud.google.com/gke-tpu-topology": tpus.topology,
            }
        else:
            nodes = {"cloud.google.com/gke-accelerator": GPUS[self.accelerator]}
        if self.spot:
            nodes["cloud.google.com/gke-spot"] = "true"
        return fill("gke.yaml.j2", job=job, slices=tpus, selector=nodes, program=job.program(self.python, command))
