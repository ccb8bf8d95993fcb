"""A run that is killed, again and again, ends as the one that was not."""

import json
import random
import signal

from tests.system.conftest import TINY, finish, interrupt

STEPS = 60


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
        codes.append(interrupt(killed, generator.uniform(0, 1.5), number, *words))
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

    # On another mesh the same examples are seen and the figures agree.
    output = finish("train", *words[:-1], f"run_dir={tmp_path / 'mesh'}", "train.steps=8")
    finish("train", *words[:-1], f"run_dir={tmp_path / 'eight'}", "train.steps=8", "mesh.fsdp=2", devices=4)
    one, four = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("mesh", "eight"))
    assert one["examples_digest"] == four["examples_digest"]
    assert abs(one["metrics"]["test/loss"] - four["metrics"]["test/loss"]) < 1e-4 * one["metrics"]["test/loss"]
