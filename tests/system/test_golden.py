"""The resolved configuration of every experiment, as text, so that a change to it shows in review."""

from pathlib import Path

import pytest

from launch.command_line import experiment_names, load_experiment
from mmjax.config import experiment_file
from mmjax.config.experiment import resolve_machine
from mmjax.hardware.machine import Machine

GOLDEN = Path(__file__).parent / "golden"
# Of no machine in particular, so that the files are the same on all.
MACHINE = Machine("float32", unroll=True, workers=1)


@pytest.mark.parametrize("name", experiment_names())
def test_resolved_experiment(name):
    experiment = resolve_machine(load_experiment(name), MACHINE)
    text = experiment_file.to_json(experiment) + "\n"
    path = GOLDEN / f"{name}.json"
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} was not there and has been written; look at it and commit it")
    assert text == path.read_text()
    assert experiment_file.from_json(text) == experiment
