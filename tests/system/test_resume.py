"""A run that is killed, again and again, ends as the one that was not."""

import json
import random
import shutil
import signal

import numpy as np

from mmjax.config import experiment_file
from tests.system.conftest import TINY, finish, interrupt, start

STEPS = 40


def test_a_signal_before_the_first_step_is_answered_at_once(tmp_path, data_dir):
    """Compiling holds up Python's own handlers; and a run without a step does not own its directory."""
    words = ("interactions", "model.width=32", "data.source.train=96", f"data_dir={data_dir}", f"run_dir={tmp_path}")
    process = start("train", *words)
    for line in process.stdout:
        if "compiling" in line:
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped before the first step, where nothing is lost" in output
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not experiment_file.has_begun(tmp_path)


def test_killed_runs_resume_exactly(tmp_path, data_dir, request):
    words = ("scenes", *TINY, f"data_dir={data_dir}", f"train.steps={STEPS}", "train.ema=0.9", "model.dropout=0.1")
    finish("train", *words, f"run_dir={tmp_path / 'whole'}")
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())

    killed = tmp_path / "killed"
    words = (*words, f"run_dir={killed}")
    generator = random.Random(0)
    codes = []
    for turn in range(request.config.getoption("kills")):
        # Most of the time after the first line goes by between checkpoints and while they are written.
        number = signal.SIGTERM if turn == 1 else signal.SIGKILL
        workers = "data.workers=1" if number == signal.SIGTERM else "data.workers=0"
        given = [workers if word.startswith("data.workers=") else word for word in words]
        codes.append(interrupt(killed, generator.uniform(0, 1.5), number, "train", *given))
    moved = shutil.copytree(killed, tmp_path / "moved")
    output = finish("train", *words)
    resumed = json.loads((killed / "summary.json").read_text())

    assert set(codes) <= {-signal.SIGKILL, 75, 0}, codes
    assert -signal.SIGKILL in codes, f"no run lived long enough to be killed: {codes}"
    assert "resuming" in output
    assert resumed["parameters_digest"] == whole["parameters_digest"]
    assert resumed["examples_digest"] == whole["examples_digest"]
    assert resumed["metrics"] == whole["metrics"]
    histories = [(run / "metrics.jsonl").read_text().splitlines() for run in (tmp_path / "whole", killed)]
    steps, losses = zip(
        *([[json.loads(line)[key] for line in lines] for key in ("step", "train/loss")] for lines in histories),
        strict=True,
    )
    assert list(steps[0]) == list(steps[1]) == list(range(1, STEPS + 1))
    assert losses[0] == losses[1]

    # The same on another mesh: the examples are identical, the figures agree.
    finish("train", *words[:-1], f"run_dir={moved}", "mesh.fsdp=2", devices=4)
    elsewhere = json.loads((moved / "summary.json").read_text())
    assert elsewhere["examples_digest"] == whole["examples_digest"]
    lines = map(json.loads, (moved / "metrics.jsonl").read_text().splitlines())
    np.testing.assert_allclose([line["train/loss"] for line in lines], losses[0], rtol=1e-4)
