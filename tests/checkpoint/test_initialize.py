"""Initialisation from another run: by path, renamed, resized, and what does not fit refused."""

import json

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from flax import nnx
from safetensors.numpy import save_file

from mmjax.checkpoint import int8
from mmjax.checkpoint.exported import sha256
from mmjax.checkpoint.initialize import Initialize, Rename, initialize, resize_position
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.errors import UserError
from mmjax.layers.linear import Linear
from mmjax.layers.position import make_position
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS


class Tower(nnx.Module):
    """A map and position embeddings."""

    def __init__(self, places, width, rules, rngs):
        self.up = Linear((width, 16), ("embed", "mlp"), bias=True, rules=rules, rngs=rngs)
        self.position = make_position((*places, width), rules=rules, rngs=rngs)


def make(key, *, places, length=6, width=8, classes=4, image="image", rules=PRESETS["fsdp_tensor"]):
    rngs = nnx.Rngs(key)
    return nnx.Dict(
        {
            image: Tower(places, width, rules, rngs),
            "text": Tower((length,), width, rules, rngs),
            "head": Linear((width, classes), ("embed", None), rules=rules, rngs=rngs),
        }
    )


def drawn(seed, **options):
    return jax.jit(lambda key: make(key, **options))(jax.random.key(seed))


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def other(mesh, tmp_path_factory):
    """A run of 20 steps of a model with a grid of 4 x 4 places, and an average of it."""
    run_dir = tmp_path_factory.mktemp("other")
    model = drawn(1, places=(4, 4))
    checkpoints = Checkpoints(run_dir, Checkpoint())
    checkpoints.save(10, {"model": drawn(2, places=(4, 4)), "opt_state": jnp.zeros(3)}, {}, {})
    average = jax.tree.map(lambda leaf: leaf / 2, model)
    checkpoints.save(20, {"model": model, "ema": average, "opt_state": jnp.zeros(3)}, {}, {})
    checkpoints.close()
    return run_dir, numbers(model)


def numbers(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def load(other, seed=5, places=(4, 4), said=None, config=None, **options):
    """A fresh model's numbers before and after it was initialised."""
    fresh = drawn(seed, places=places, **options)
    said = [] if said is None else said
    model = initialize(fresh, chz.replace(config or Initialize(run_dir=""), run_dir=str(other[0])), say=said.append)
    for (name, got), (_, want) in zip(named_leaves(model), named_leaves(fresh), strict=True):
        assert (got.sharding, got.dtype, got.shape) == (want.sharding, want.dtype, want.shape), name
    return numbers(fresh), numbers(model)


def loaded(fresh, model, source):
    """Which parameters are the source's; the others must be as they were drawn."""
    same = {name for name in model if np.array_equal(model[name], source.get(name))}
    left = {name for name in model if np.array_equal(model[name], fresh[name])}
    assert same | left == set(model)
    return same - left


def test_the_whole_model(other):
    said = []
    fresh, model = load(other, said=said)
    assert {"image/up/kernel", "text/position", "head/kernel"} < loaded(fresh, model, other[1])
    assert said == [f"initialised from step 20 of {other[0]}: 7 parameters loaded, 0 of them resized; 0 left as drawn"]


def test_another_step_and_the_average(other):
    _, at_10 = load(other, config=Initialize(run_dir="", step=10))
    assert np.array_equal(at_10["head/kernel"], numbers(drawn(2, places=(4, 4)))["head/kernel"])
    _, average = load(other, config=Initialize(run_dir="", average=True))
    assert np.array_equal(average["head/kernel"], other[1]["head/kernel"] / 2)


def test_by_path_renamed_and_onto_other_sharding(other):
    said = []
    config = Initialize(run_dir="", include="photo/*", exclude="*bias", rename=(Rename(old="image", new="photo"),))
    fresh, model = load(other, said=said, config=config, image="photo", rules=PRESETS["data"])
    source = {name.replace("image/", "photo/"): value for name, value in other[1].items()}
    assert loaded(fresh, model, source) == {"photo/up/kernel", "photo/position"}
    assert said[0].endswith(
        "2 parameters loaded, 0 of them resized; 5 left as drawn (head/kernel, photo/up/bias, text/position, ...)"
    )


def test_positions_are_resized_and_new_parameters_left_alone(other):
    said = []
    config = Initialize(run_dir="", exclude="head/*")
    _, model = load(other, places=(8, 6), length=11, classes=7, said=said, config=config)
    want = jax.image.resize(other[1]["image/position"], (8, 6, 8), "bicubic")
    np.testing.assert_allclose(model["image/position"], want, atol=1e-6)
    np.testing.assert_array_equal(model["image/up/kernel"], other[1]["image/up/kernel"])
    assert "6 parameters loaded, 2 of them resized; 1 left as drawn (head/kernel)" in said[0]


def test_resizing_against_scipy():
    """Sequences by linear interpolation between their ends at half-pixel places; planes and squares as grids."""
    position = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    places = (np.arange(11) + 0.5) * 6 / 11 - 0.5
    want = scipy.interpolate.interp1d(np.arange(6), position, axis=0)(places.clip(0, 5))
    np.testing.assert_allclose(resize_position(jnp.asarray(position), (11, 3)), want, atol=1e-5)
    row, column = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    grid = jnp.asarray(np.stack([row, column**2], -1), jnp.float32)
    big = np.asarray(resize_position(grid, (16, 16, 2)))[4:-4, 4:-4]
    row, column = np.meshgrid((np.arange(16) + 0.5) / 2 - 0.5, (np.arange(16) + 0.5) / 2 - 0.5, indexing="ij")
    np.testing.assert_allclose(big, np.stack([row, column**2], -1)[4:-4, 4:-4], atol=1e-4)


def write_export(folder, arrays):
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in (folder / "model.safetensors", folder / "config.json")
    }
    (folder / "export.json").write_text(json.dumps({"format": 1, "step": 20, "fingerprint": "f", "files": files}))


def test_an_export_gives_what_its_run_gives(other, tmp_path):
    write_export(tmp_path, other[1])
    for options in ({}, {"places": (6, 8), "length": 9}):
        for name, array in load(other, **options)[1].items():
            np.testing.assert_array_equal(load((tmp_path,), **options)[1][name], array, err_msg=name)
    model = jax.eval_shape(lambda key: make(key, places=(4, 4)), jax.random.key(0))
    with pytest.raises(UserError, match="is an export of step 20, and has no step 10"):
        initialize(model, Initialize(run_dir=str(tmp_path), step=10))
    with pytest.raises(UserError, match="leave average out"):
        initialize(model, Initialize(run_dir=str(tmp_path), average=True))


def test_parameters_as_int8_are_taken_as_floats(other, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "SMALLEST", 64)
    written = int8.quantize(other[1])
    write_export(tmp_path, written)
    _, model = load((tmp_path,))
    for name, array in int8.dequantize(written).items():
        np.testing.assert_array_equal(model[name], array, err_msg=name)
    assert any(array.dtype == np.int8 for array in written.values())


def test_what_does_not_fit_is_refused(other, tmp_path):
    def attempt(match, width=8, classes=4, run_dir=other[0], **settings):
        model = jax.eval_shape(lambda key: make(key, places=(4, 4), width=width, classes=classes), jax.random.key(0))
        with pytest.raises(UserError, match=match):
            initialize(model, Initialize(run_dir=str(run_dir), **settings))

    attempt(r"model/head/kernel in step 20 of .* has the shape \(8, 4\), and head/kernel here \(8, 5\)", classes=5)
    attempt(r"has the shape \(4, 4, 8\), and image/position here \(4, 4, 16\)", width=16, include="*/position")
    attempt(r"no parameter to load .*it has ema/.*this model has head/kernel", include="nothing")
    attempt(
        r"makes text/position of both model/image/position and model/text/position",
        rename=(Rename(old="image", new="text"),),
    )
    attempt(r"no whole checkpoint of step 15 .*; those there: 10, 20", step=15)
    attempt(r"has no checkpoint", run_dir=tmp_path / "empty")
