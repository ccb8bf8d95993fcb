"""Checkpoints: exact, onto any mesh, and never taken for whole when they are not."""

import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmjax.checkpoint.integrity import UNSEALED, disk_problem, find_damage
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.checkpoint.restore import saved_steps
from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

ROOT = Path(__file__).resolve().parents[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A training state in small: modules, optimizer states with masked parts, nothing, and scalars."""

    step: Any
    model: nnx.Module
    opt_state: Any
    ema: Any = None


def make_state(key, rules=PRESETS["fsdp_tensor"], width=8):
    model = nnx.Dict(
        {"value": Linear((width, 4, 2), ("embed", "heads", None), bias=True, rules=rules, rngs=nnx.Rngs(key))}
    )
    optimizer = optax.partition(
        {"a": optax.adam(1e-3), "b": optax.set_to_zero()},
        lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: "b" if "bias" in str(path) else "a", tree),
    )
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    return State(jnp.asarray(7, jnp.int32), model, optimizer.init(model), half)


@pytest.fixture(scope="module")
def mesh():
    return MeshShape(data=2, fsdp=2, tensor=2).build()


@pytest.fixture(scope="module")
def state(mesh):
    with jax.set_mesh(mesh):
        return jax.jit(make_state)(jax.random.key(0))


@pytest.fixture
def run(tmp_path, mesh):
    """Opens the checkpoints of one run directory; what they warn of is in `run.said`."""
    opened, said = [], []

    def open_again(**options):
        for old in opened:
            old.close()
        opened[:] = [Checkpoints(tmp_path, Checkpoint(**options), warn=said.append)]
        return opened[0]

    open_again.said = said
    open_again.folder = tmp_path / "checkpoints"
    with jax.set_mesh(mesh):
        yield open_again
        for old in opened:
            old.close()


def numbers(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def assert_equal(got, want):
    got, want = numbers(got), numbers(want)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def small(value):
    """A state of which one array is large enough to lie in a file of its own, and which says which it is."""
    return {"x": jnp.sin(value + jnp.arange(20_000, dtype=jnp.float32)), "y": jnp.arange(300) * value}


def save_small(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, small(step), {"at": step}, {})
    checkpoints.wait()


def is_small(restored, step):
    assert (restored.step, restored.extra) == (step, {"at": step})
    assert_equal(restored.state, small(step))


def test_round_trip_onto_other_meshes(run, state, mesh, tmp_path):
    extra = {"examples_digest": "ab", "seconds": 1.5, "nested": [1, None]}
    run().save(7, state, extra, {})
    run()
    for shape, rules in [
        (MeshShape(data=1, fsdp=4, tensor=2), PRESETS["fsdp_tensor"]),
        (MeshShape(data=8), PRESETS["data"]),
        (MeshShape(data=1), PRESETS["data"]),
    ]:
        with jax.set_mesh(shape.build()):
            abstract = jax.eval_shape(lambda key, rules=rules: make_state(key, rules), jax.random.key(1))
            restored = Checkpoints(tmp_path, Checkpoint()).restore(abstract)
            fresh = jax.jit(lambda key, rules=rules: make_state(key, rules))(jax.random.key(1))
        assert (restored.step, restored.extra) == (7, extra)
        assert_equal(restored.state, state)
        assert jax.tree.structure(restored.state) == jax.tree.structure(fresh)
        for (name, got), (_, want) in zip(named_leaves(restored.state), named_leaves(fresh), strict=True):
            assert got.sharding == want.sharding, name
    kernel = "model/value/kernel"
    assert kernel in run().contents(7)


def test_without_a_mesh(tmp_path):
    checkpoints = Checkpoints(tmp_path, Checkpoint())
    assert checkpoints.restore(small(0)) is None
    save_small(checkpoints, 1)
    is_small(checkpoints.restore(jax.eval_shape(lambda: small(0))), 1)
    checkpoints.close()


def test_the_step_may_go_on_while_a_state_is_saved(run):
    """Donated buffers are written over at once; what is saved is what was there before."""
    start = {str(i): jnp.full((500, 1000), float(i)) for i in range(10)}
    want = numbers(start)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 3 + 1, tree), donate_argnums=0)
    state = jax.block_until_ready(step.lower(start).compile()(start))
    want = numbers(jax.tree.map(jnp.copy, state))
    checkpoints = run()
    checkpoints.save(1, state, {}, {})
    for _ in range(10):
        state = step(state)
    jax.block_until_ready(state)
    assert_equal(checkpoints.restore(state).state, want)


def test_a_step_that_has_a_checkpoint_keeps_it(run):
    checkpoints = run()
    save_small(checkpoints, 5)
    checkpoints.save(5, small(6), {}, {})
    assert checkpoints.steps() == [5]
    is_small(checkpoints.restore(small(0)), 5)


def test_the_earlier_of_equally_good_ones_is_kept_and_one_saved_to_stop_goes(run):
    checkpoints = run(keep=1, best_metric="m")
    for step, metrics in {1: {"m": 0.5}, 2: {}, 3: {"m": 0.5}, 4: None, 5: {"m": 0.1}}.items():
        if step == 5:  # Evaluated after it was saved, and yet none of those an uninterrupted run has.
            checkpoints = run(keep=1, best_metric="m")
            checkpoints.note(4, {"m": 0.9})
        checkpoints.save(step, small(step), {}, metrics)
        assert checkpoints.steps() == sorted({1, step})
    checkpoints.note(5, {"m": 0.6})
    checkpoints.save(6, small(6), {}, {})
    checkpoints.save(6, small(6), {}, {"m": 0.7})
    assert checkpoints.steps() == [6]


@pytest.mark.parametrize(("mode", "best"), [("max", 20), ("min", 40)])
def test_the_newest_and_the_best_are_kept(run, mode, best):
    options = {"keep": 2, "best_metric": "validation/label/accuracy", "best_mode": mode}
    values = {10: 0.5, 20: 0.9, 30: float("nan"), 40: 0.1, 50: None, 60: 0.4, 70: 0.6, 80: 0.3}
    for step, value in values.items():
        # Opened anew each time: what is best must not be forgotten over a restart.
        metrics = {} if value is None else {"validation/label/accuracy": value, "validation/label/count": 8.0}
        run(**options).save(step, small(step), {}, metrics)
    checkpoints = run(**options)
    assert checkpoints.steps() == [best, 70, 80]
    assert sorted(int(path.name) for path in run.folder.iterdir()) == [best, 70, 80]
    with pytest.raises(UserError, match=r"best_metric=validation/label/accuracy is not among the metrics test/x"):
        checkpoints.save(90, small(90), {}, {"test/x": 1.0})


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


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


def test_a_reader_changes_nothing(run, tmp_path):
    save_small(run(), 1, 2, 3)
    flip(run.folder / "3" / "extra" / "extra.json")
    (run.folder / "4.orbax-checkpoint-tmp").mkdir()
    before = sorted(run.folder.rglob("*"))
    reader = Checkpoints(tmp_path, Checkpoint(keep=1), warn=run.said.append, read_only=True)
    is_small(reader.restore(small(0)), 2)
    is_small(reader.restore(small(0), step=1), 1)
    assert len(run.said) == 1
    with pytest.raises(UserError, match=r"no whole checkpoint of step 3 in .*; those there: 1, 2"):
        reader.restore(small(0), step=3)
    reader.close()
    assert sorted(run.folder.rglob("*")) == before
    assert Checkpoints(tmp_path / "none", Checkpoint(), read_only=True).restore(small(0)) is None
    assert not (tmp_path / "none").exists()


def test_another_model_is_one_clear_error(run):
    checkpoints = run()
    save_small(checkpoints, 1)
    with pytest.raises(
        UserError, match=r"checkpoint 1 .* of another model or optimizer: it has no z; it has y too; use"
    ):
        checkpoints.restore({"x": jnp.zeros(20_000), "z": jnp.zeros(3)})
    with pytest.raises(
        UserError, match=r"x is float32\[20000\] there and float32\[999\] here; y is int32.* and float32"
    ):
        checkpoints.restore({"x": jnp.zeros(999), "y": jnp.zeros(300)})
    assert checkpoints.steps() == [1]
    assert_equal(checkpoints.restore({"y": jnp.arange(300)}, partial=True).state, {"y": jnp.arange(300)})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses(run, monkeypatch, number):
    checkpoints = run()
    save_small(checkpoints, 1)
    real = os.mkdir

    def refuse(path, *arguments, **keywords):
        if str(path).startswith(str(run.folder)):
            raise OSError(number, os.strerror(number), str(path))
        real(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(
            UserError, match=r"checkpoint 2 could not be written in .*: (the disk is full|that file system)"
        ):
            save_small(checkpoints, 2)
    is_small(run().restore(small(0)), 1)


def test_what_tensorstore_says_of_a_full_disk():
    # As seen on a full tmpfs.
    error = ValueError(
        'RESOURCE_EXHAUSTED: Error writing "x/0" in OCDBT database: Failed to write 1329619 bytes to file 4: No space '
        "left on device [os_error_code='28']"
    )
    assert disk_problem(error) == "the disk is full; make room there"
    assert disk_problem(ValueError("RESOURCE_EXHAUSTED: out of memory")) is None


def test_wrong_values():
    with pytest.raises(ValueError, match=r"checkpoint.keep must be at least 1"):
        Checkpoint(keep=0)
