"""The resolved configuration of every experiment, as text, so that a change to it shows in review."""

from pathlib import Path

import pytest

from launch.command_line import experiment_names, load_experiment
from mmjax.config import experiment_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", experiment_names())
def test_resolved_experiment(name):
    experiment = load_experiment(name)
    text = experiment_file.to_json(experiment) + "\n"
    path = GOLDEN / f"{name}.json"
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path.name} was not there and has been written; look at it and commit it")
    assert text == path.read_text()
    assert experiment_file.from_json(text) == experiment
