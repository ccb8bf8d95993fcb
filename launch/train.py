"""Train an experiment, or go on with it: `python -m launch.train EXPERIMENT key=value ...`."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import command_line
from .huge_pages import prefer_huge_pages

if TYPE_CHECKING:
    from mmjax.config.experiment import Experiment


def train(experiment: "Experiment") -> Path | None:
    """Join the other processes of the run, if there are any, and train."""
    from mmjax.compilation import cache_compilations
    from mmjax.sharding.distributed import initialize
    from mmjax.training import loop

    initialize()
    cache_compilations(experiment.data_dir)
    return loop.train(experiment)


if __name__ == "__main__":
    prefer_huge_pages()  # Before JAX is imported, which would then be imported twice.
    from mmjax.sharding.distributed import leave

    leave(command_line.main(train, "Train an experiment, from where its run directory stands."))
