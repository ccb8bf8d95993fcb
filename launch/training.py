"""The request of `launch.train`, in a file of its own: the command starts before JAX is imported."""

import chz

from mmjax.config.experiment import Experiment, parts

from . import command_line


@chz.chz
class Training(Experiment):
    """An experiment, and whether its run directory is used as it is found."""

    fresh: bool = chz.field(
        default=False, doc="move what run_dir holds to RUN_DIR.1 (or .2, ...) and start from the first step"
    )


def load(name: str) -> Training:
    """The training of the experiment of that name."""
    return Training(**parts(command_line.load_experiment(name)))
