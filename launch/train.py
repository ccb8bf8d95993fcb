"""Train an experiment, or resume it: `python -m launch.train EXPERIMENT key=value ...`."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import command_line
from .huge_pages import prefer_huge_pages

if TYPE_CHECKING:
    from mmjax.config.experiment import Experiment

    from .training import Training


def load(name: str) -> "Training":
    """The training of the experiment of that name."""
    from . import training

    return training.load(name)


def train_as_asked(request: "Training") -> Path | None:
    """Train as asked on the command line."""
    from mmjax.config.experiment import Experiment, parts

    return train(Experiment(**parts(request)), request.fresh)


def train(experiment: "Experiment", fresh: bool = False) -> Path | None:
    """Connect to the other processes of the run, if there are any, and train; `fresh`: see `Training`."""
    from mmjax.compilation import cache_compilations
    from mmjax.config.experiment_file import move_aside
    from mmjax.errors import Preempted
    from mmjax.sharding.distributed import initialize
    from mmjax.training import loop

    initialize()
    cache_compilations(experiment.data_dir)
    if not fresh:
        return loop.train(experiment)
    move_aside(experiment.run_dir)
    try:
        return loop.train(experiment)
    except Preempted as error:
        raise Preempted(f"{error} (leave out fresh=true)") from error


SUBJECTS = command_line.Subjects(
    "experiment",
    command_line.experiment_names,
    load,
    others=True,
    more=f"{command_line.OWN} fresh=true moves the old run directory aside.",
)


if __name__ == "__main__":
    prefer_huge_pages()  # Before JAX is imported, which would then be imported twice.
    from mmjax.sharding.distributed import leave

    leave(command_line.main(train_as_asked, "Train an experiment, or resume it.", subjects=SUBJECTS))
