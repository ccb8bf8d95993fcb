"""Checkpoints that are damaged, half written or of another run are never taken for whole."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mmjax.checkpoint.integrity import UNSEALED, disk_problem, find_damage
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.checkpoint.restore import saved_steps
from mmjax.errors import UserError
from tests.checkpoint.small import flip, is_small, save_small, small

DAMAGE = {
    "missing": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
}


def test_any_damage_to_any_file_is_noticed(run):
    checkpoints = run(keep=2)
    save_small(checkpoints, 1, 2)
    whole = run.folder / "2"
    kept = run.folder.parent / "kept"
    shutil.copytree(whole, kept)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    # The array's bytes lie in one file or in a few, as Orbax's threads happen to meet.
    assert max((whole / name).stat().st_size for name in files) >= 20_000
    assert Path("extra/extra.json") in files
    for name in files:
        for kind, damage in DAMAGE.items():
            damage(whole / name)
            run.said.clear()
            restored = checkpoints.restore(small(0))
            if str(name) in UNSEALED:
                # Written after the seal, and read by nobody.
                is_small(restored, 2)
            else:
                is_small(restored, 1)
                assert checkpoints.steps() == [1]
                assert len(run.said) == 1, (name, kind)
                said = f"checkpoint 2 in {run.folder} is damaged ("
                assert run.said[0].startswith(said)
                # A changed seal may accuse any file.
                assert str(name) in run.said[0] or (kind, str(name)) == ("flipped", "digests.json")
                assert run.said[0].endswith("moved to damaged-2")
                shutil.rmtree(run.folder / "damaged-2")
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(kept, whole)
            checkpoints = run(keep=2)


def test_a_damaged_step_is_put_aside_and_can_be_saved_again(run):
    checkpoints = run()
    save_small(checkpoints, 1, 2)
    # Orbax keeps times in this file, which nobody needs; it is the one that is not sealed.
    (run.folder / "1" / UNSEALED[0]).write_text('{"init_timestamp_nsecs": "x", "commit_timestamp_nsecs": "x"}')
    for again in ("damaged-2", "damaged-2-2"):
        (run.folder / "2" / "extra" / "extra.json").write_text("{")
        is_small(run().restore(small(0)), 1)
        assert (run.folder / again / "state").is_dir()
        checkpoints = run()
        save_small(checkpoints, 2)
        is_small(checkpoints.restore(small(0)), 2)
    assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_of_another_step_or_run_is_damaged(run, tmp_path):
    save_small(run(), 1, 2, 3)
    shutil.copytree(run.folder, tmp_path / "kept")
    (run.folder / "2").rename(run.folder / "2-")
    (run.folder / "3").rename(run.folder / "2")
    (run.folder / "2-").rename(run.folder / "3")
    is_small(run().restore(small(0)), 1)
    assert [line.split(" in ")[0] + line.split("is damaged")[1].split(";")[0] for line in run.said] == [
        "checkpoint 3 (it is the checkpoint of step 2)",
        "checkpoint 2 (it is the checkpoint of step 3)",
    ]
    other = Checkpoints(tmp_path / "other", Checkpoint(), fingerprints=["b"])
    save_small(other, 4)
    other.close()
    assert find_damage(tmp_path / "other" / "checkpoints" / "4", 4, ["b"]) is None
    (tmp_path / "other" / "checkpoints" / "4").rename(run.folder / "4")
    reader = Checkpoints(tmp_path, Checkpoint(), fingerprints=["a", "c"], warn=run.said.append, read_only=True)
    with pytest.raises(UserError, match=r"no whole checkpoint of step 4"):
        reader.restore(small(0), 4)
    reader.close()
    assert "checkpoint 4 in" in run.said[-1]
    assert "is damaged (it is of another run)" in run.said[-1]


def test_only_a_step_as_it_is_written_counts(run, tmp_path):
    save_small(run(), 1)
    strange = ["99999999999999999999", "4294967296", "²", "007", "2\n", "1٣", "-3", "damaged"]
    for name in strange:
        shutil.copytree(run.folder / "1", run.folder / name)
    checkpoints = run(keep=1)
    assert checkpoints.steps() == saved_steps(tmp_path) == [1]
    is_small(checkpoints.restore(small(0)), 1)
    save_small(checkpoints, 2, 3)
    assert {path.name for path in run.folder.iterdir()} == {"3", *strange}


def seals(outside):
    """What a digests.json may hold by accident or malice, and what is then said."""
    header = '{"step": 1, "fingerprint": null, "files": '
    for content in ("", "{}", "[]", "5", "null", '"x"', "[" * 100_000, '{"a":' * 100_000, '{"step": "1"}', "\udc80"):
        yield content, "digests.json was changed"
    for files in ("[]", "3", "null", '["extra/extra.json"]'):
        yield header + files + "}", "digests.json was changed"
    for name in (str(outside), "../../outside", "extra/../../../outside", "nothing"):
        yield header + json.dumps({name: [1, "00"]}) + "}", f"{name} is missing"
    yield header + "{}}", "extra/commit_success.txt was added"
    yield json.dumps({"extra/extra.json": [1, "00"]}), "it was written by an older version of mmjax"


def test_no_seal_leads_outside_or_to_a_traceback(run, tmp_path, monkeypatch):
    save_small(run(), 1)
    (tmp_path / "outside").write_text("x")
    read = []
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **options: read.append(path) or opened(path, *args, **options)
    )
    whole = run.folder / "1"
    for content, damage in seals(tmp_path / "outside"):
        (whole / "digests.json").write_bytes(content.encode(errors="surrogateescape"))
        assert find_damage(whole, 1) == damage, content[:80]
    assert {path for path in read if path.resolve() == tmp_path / "outside"} == set()


@pytest.mark.parametrize("name", ["digests.json", "extra/extra.json", "state/_METADATA", UNSEALED[0], "added"])
def test_what_is_no_file_is_damage_and_is_not_waited_for(run, tmp_path, name):
    save_small(run(), 1, 2)
    path = run.folder / "2" / name
    kept = tmp_path / "kept"
    if path.exists():
        path.rename(kept)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    try:
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(kept)):
            make(path)
            assert find_damage(run.folder / "2", 2) == f"{name} cannot be read: not a regular file"
            path.unlink()
        os.mkfifo(path)
        is_small(run(best_metric="m").restore(small(0)), 1)
        save_small(run(best_metric="m"), 3)
    finally:
        signal.alarm(0)


def test_half_written_folders_are_never_taken_for_whole(run):
    save_small(run(), 1, 2)
    for path in ("3", "4/state", "2.orbax-checkpoint-tmp/state", "5.orbax-checkpoint-tmp"):
        (run.folder / path).mkdir(parents=True)
    half = run.folder / "6"
    shutil.copytree(run.folder / "2", half)
    for path in [path for path in half.rglob("*") if path.is_file()][::2]:
        path.unlink()
    checkpoints = run()
    is_small(checkpoints.restore(small(0)), 2)
    assert [line.split(" in ")[0] for line in run.said] == ["checkpoint 6", "checkpoint 4", "checkpoint 3"]
    save_small(checkpoints, 7)
    assert sorted(path.name for path in run.folder.iterdir()) == ["1", "2", "7", "damaged-3", "damaged-4", "damaged-6"]


def test_no_silent_start_from_scratch(run, tmp_path):
    save_small(run(), 1, 2)
    for step in ("1", "2"):
        (run.folder / step / "digests.json").unlink()
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"no whole checkpoint is left in .*, only damaged ones \(damaged-1, damaged-2\)"
        ):
            run().restore(small(0))
    assert len(run.said) == 2
    for step in ("1", "2"):
        shutil.rmtree(run.folder / f"damaged-{step}")
    assert run().restore(small(0)) is None


def test_what_tensorstore_says_of_a_full_disk():
    # As seen on a full tmpfs.
    error = ValueError(
        'RESOURCE_EXHAUSTED: Error writing "x/0" in OCDBT database: Failed to write 1329619 bytes to file 4: No space '
        "left on device [os_error_code='28']"
    )
    assert disk_problem(error) == "the disk is full; make room there"
    assert disk_problem(ValueError("RESOURCE_EXHAUSTED: out of memory")) is None
    written = (
        "Error opening \"zarr\" driver: Error writing gs://b/run/4/manifest: PERMISSION_DENIED: no access [spec='{}']"
    )
    assert disk_problem(ValueError(written)) == "Error writing gs://b/run/4/manifest: PERMISSION_DENIED: no access"
