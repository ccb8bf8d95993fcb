"""An experiment as one value: the configuration of a whole run."""

from typing import Any, Literal

import chz

from mmjax.checkpoint.manager import Checkpoint
from mmjax.config.train import Train
from mmjax.data.loader import Data
from mmjax.fields import OPERATIONAL
from mmjax.hardware.machine import Machine
from mmjax.model import Model
from mmjax.optim.optimizers import AdamW, Optimizer
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS


@chz.chz
class Experiment:
    """Everything that decides a run. Two experiments are the same run if their fingerprints are equal."""

    name: str = chz.field(metadata=OPERATIONAL)
    data: Data
    model: Model
    optimizer: Optimizer
    train: Train
    critic_optimizer: Optimizer = chz.field(
        default=AdamW(learning_rate=3e-4, b1=0.0, b2=0.99), doc="of the adversaries of outputs, where there are some"
    )
    checkpoint: Checkpoint = chz.field(default=Checkpoint(), metadata=OPERATIONAL)
    mesh: MeshShape = chz.field(default=MeshShape(), metadata=OPERATIONAL)
    rules: str = chz.field(
        default="fsdp", x_type=Literal[tuple(PRESETS)], doc="how arrays are split over the mesh", metadata=OPERATIONAL
    )
    seed: int = 0
    run_dir: str = chz.field(
        default=None,
        x_type=str | None,
        converter=chz.mungers.if_none(lambda experiment: f"runs/{experiment.name}"),
        doc="where everything the run writes goes",
        metadata=OPERATIONAL,
    )
    data_dir: str = chz.field(default="~/.cache/mmjax", doc="where prepared data sets lie", metadata=OPERATIONAL)

    @chz.validate
    def _seed(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


def resolve_machine(experiment: Experiment, machine: Machine) -> Experiment:
    """The same experiment with dtype, unrolling and loader processes filled in where it leaves them open."""
    data = experiment.data
    if data.workers is None:
        data = chz.replace(data, workers=machine.workers)
    return chz.replace(experiment, data=data, model=experiment.model.resolve(machine))


def parts(experiment: Experiment) -> dict[str, Any]:
    """The values of an experiment's fields by name, to make a subclass of it from, or an experiment back."""
    return {name: getattr(experiment, name) for name in chz.chz_fields(Experiment)}
