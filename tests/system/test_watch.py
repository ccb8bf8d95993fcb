"""A run is evaluated while it writes checkpoints and removes them again; the watch is killed, and ends by itself."""

import json
import re
import signal
import time

import pytest

from tests.system.conftest import TINY, finish, start

STEPS, EVERY = 600, 50


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_or_named_as_gone(tmp_path, data_dir):
    run = tmp_path / "run"
    tiny = [word for word in TINY if not word.startswith(("checkpoint.", "train.log"))]
    words = (*tiny, f"data_dir={data_dir}", f"run_dir={run}", f"train.steps={STEPS}", f"checkpoint.every={EVERY}")
    training = start("train", "scenes", *words, "checkpoint.keep=3")
    while not (run / "checkpoints" / str(EVERY)).exists():
        assert training.poll() is None
        time.sleep(0.05)
    watch = ("evaluate", run, "watch=true", "split=validation", "suite=standard")
    first = start(*watch)
    evaluations = run / "evaluations"
    while not list(evaluations.glob("*.json")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=600)[0]
    before = {path.name: path.read_bytes() for path in evaluations.glob("*.json")}

    output = finish(*watch)
    assert training.wait(timeout=600) == 0
    said += output
    assert "Traceback" not in said, said
    assert output.splitlines()[-1] == str(evaluations / f"{STEPS}.json")
    evaluated = {int(path.stem) for path in evaluations.glob("*.json")}
    gone = {int(step) for step in re.findall(r"checkpoint (\d+) is gone", said)}
    assert evaluated | gone == set(range(EVERY, STEPS + 1, EVERY))
    assert STEPS in evaluated
    for name, content in before.items():
        assert (evaluations / name).read_bytes() == content
    for path in evaluations.glob("*.json"):
        accuracy = json.loads(path.read_text())["metrics"]["validation/count/accuracy"]
        assert accuracy["examples"] == 9
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert "Curves" in (evaluations / "report.html").read_text()
    assert list((run / "tensorboard" / "evaluations").glob("*tfevents*"))

    # Nothing is left to do, and nothing is done again.
    assert "evaluating" not in finish(*watch)
