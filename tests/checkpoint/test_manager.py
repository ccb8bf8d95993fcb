"""Checkpoints: exact, onto any mesh, and which of them are kept."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.checkpoint.small import assert_equal, flip, is_small, numbers, save_small, small

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
def state(mesh):
    with jax.set_mesh(mesh):
        return jax.jit(make_state)(jax.random.key(0))


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


def test_wrong_values():
    with pytest.raises(ValueError, match=r"checkpoint.keep must be at least 1"):
        Checkpoint(keep=0)
