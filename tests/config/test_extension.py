"""More steps for a run: from which checkpoint it goes on, what it keeps, and when it is refused."""

from pathlib import Path

import chz
import pytest

from mmjax.checkpoint.integrity import stored_fingerprints
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment
from mmjax.config.overrides import resolve
from mmjax.errors import UserError
from mmjax.optim.optimizers import AdamW
from mmjax.optim.schedules import Constant
from tests.config.test_experiment import EXPERIMENT

SCHEDULE = Constant(warmup=10, cooldown=0.2)
SHORT = chz.replace(
    EXPERIMENT,
    optimizer=AdamW(schedule=SCHEDULE),
    critic_optimizer=AdamW(schedule=SCHEDULE),
    train=chz.replace(EXPERIMENT.train, steps=100),
)
LONG = resolve(SHORT, ["train.steps=200"])


def begun(run_dir: Path, *steps: int, experiment: Experiment = SHORT) -> Path:
    """A run directory with checkpoints of these steps."""
    experiment_file.write(experiment, run_dir)
    (run_dir / "metrics.jsonl").write_text('{"step": 1}')
    (run_dir / "summary.json").write_text("{}")
    (run_dir / "evaluations").mkdir()
    for step in steps:
        (run_dir / "checkpoints" / str(step)).mkdir(parents=True)
        (run_dir / "evaluations" / f"{step}.json").write_text(str(step))
    return run_dir


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_before_the_cooldown_is_gone_on_from(tmp_path, capsys):
    begun(tmp_path, 40, 80)
    fingerprints = experiment_file.claim(LONG, tmp_path)
    assert experiment_file.read(tmp_path) == LONG
    assert fingerprints == [experiment_file.fingerprint(LONG), experiment_file.fingerprint(SHORT)]
    assert fingerprints == stored_fingerprints(tmp_path)
    assert names(tmp_path / "checkpoints") == ["40", "80"]
    assert not (tmp_path / "shorter.1").exists()
    assert capsys.readouterr().err == f"extending {tmp_path} to 200 steps from step 80\n"

    # The same command again changes nothing, and a third run may have the checkpoints of both.
    assert experiment_file.claim(LONG, tmp_path) == fingerprints == stored_fingerprints(tmp_path)
    longest = resolve(SHORT, ["train.steps=300"])
    assert experiment_file.claim(longest, tmp_path) == [experiment_file.fingerprint(longest), *fingerprints]


def test_what_was_trained_in_the_cooldown_is_kept_elsewhere(tmp_path, capsys):
    begun(tmp_path, 40, 80, 90, 100)
    experiment_file.claim(LONG, tmp_path)
    shorter = tmp_path / "shorter.1"
    assert names(tmp_path / "checkpoints") == ["40", "80"]
    assert names(tmp_path / "evaluations") == ["40.json", "80.json"]
    assert names(shorter / "checkpoints") == ["100", "90"]
    assert (shorter / "evaluations" / "100.json").read_text() == "100"
    assert experiment_file.read(shorter) == SHORT
    assert {"summary.json", "metrics.jsonl"} <= set(names(shorter))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"extending {tmp_path} to 200 steps from step 80; the shorter run, whose later")
    assert line.endswith(str(shorter))

    again = begun(tmp_path / "run", 40, 100)
    (again / "shorter.1").mkdir()
    experiment_file.claim(LONG, again)
    assert names(again / "shorter.2" / "checkpoints") == ["100"]


@pytest.mark.parametrize(
    ("pairs", "critics", "key"),
    [
        (["optimizer.schedule=Cosine", "optimizer.schedule.warmup=10"], False, "optimizer.schedule=Cosine"),
        (["optimizer.schedule.cooldown=0.9"], False, "optimizer.schedule=Constant"),
        (
            ["critic_optimizer.schedule=Linear", "critic_optimizer.schedule.warmup=10"],
            True,
            "critic_optimizer.schedule=Linear",
        ),
    ],
)
def test_rates_that_a_longer_run_would_not_have_had_are_refused(tmp_path, pairs, critics, key):
    short, long = (resolve(each, pairs) for each in (SHORT, LONG))
    begun(tmp_path, 80, 100, experiment=short)
    before = (tmp_path / "experiment.json").read_bytes()
    with pytest.raises(UserError) as caught:
        experiment_file.claim(long, tmp_path, critics)
    assert str(caught.value) == (
        f"train.steps=200 cannot extend the 100 steps of {tmp_path}: after step 10 the rates of {key} depend on the "
        "number of steps, and the first checkpoint kept is 80; set train.replan=true to go on from step 100 with the "
        "rates of 200 steps, or another run_dir"
    )
    assert (tmp_path / "experiment.json").read_bytes() == before
    assert names(tmp_path / "checkpoints") == ["100", "80"]

    replanned = resolve(long, ["train.replan=true"])
    experiment_file.claim(replanned, tmp_path, critics)
    assert experiment_file.read(tmp_path) == replanned
    assert experiment_file.fingerprint(replanned) != experiment_file.fingerprint(long)
    assert names(tmp_path / "checkpoints") == ["100", "80"]


def test_without_critics_their_rates_do_not_count(tmp_path):
    pairs = ["critic_optimizer.schedule=Linear", "critic_optimizer.schedule.warmup=10"]
    begun(tmp_path, 80, experiment=resolve(SHORT, pairs))
    assert experiment_file.check_owner(resolve(LONG, pairs), tmp_path) == 80


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    begun(tmp_path)
    assert experiment_file.check_owner(LONG, tmp_path) == 0


def test_fewer_steps_are_refused(tmp_path):
    begun(tmp_path, 40, experiment=LONG)
    with pytest.raises(UserError, match=r"train.steps=100 is fewer than the 200 of .* set train.steps=200 or"):
        experiment_file.check_owner(SHORT, tmp_path)


def test_more_steps_and_something_else_are_another_experiment(tmp_path):
    begun(tmp_path, 40)
    with pytest.raises(UserError, match=r"belongs to another experiment \(train.steps: 100 -> 200; seed: 0 -> 1\)"):
        experiment_file.check_owner(resolve(LONG, ["seed=1"]), tmp_path)
