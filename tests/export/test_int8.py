"""An export with int8 parameters computes what mmjax does with them, by JAX alone and by ONNX Runtime."""

import json

import jax
import numpy as np
import onnxruntime
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file

from launch import export
from mmjax.checkpoint import int8
from mmjax.checkpoint.exported import sha256
from mmjax.errors import UserError
from mmjax.inference import load
from mmjax.sharding.mesh import MeshShape
from tests.untrained import SMALLER, examples, write_run

PLAIN = ("model.dtype=float32", "model.encoders.speech=None")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "drawn", tmp_path_factory.mktemp("data"), *SMALLER, *PLAIN)


@pytest.fixture(scope="module")
def folder(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "drawn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "SMALLEST", 256)
        words = ["format=stablehlo,onnx", "quantize=int8", "what=embed", "platforms=cpu"]
        assert export.main([str(run_dir), f"out={out}", *words]) == 0
    return out


def test_parameters_are_half_a_step_from_the_runs(run_dir, folder):
    written, read, trained = load_file(folder / "model.safetensors"), load(folder).params, load(run_dir).params
    assert sum(array.dtype == np.int8 for array in written.values()) > 8
    for name, leaf in trained.items():
        step = written.get(f"{name}.scale", np.zeros(()))
        assert np.all(np.abs(read[name] - leaf) <= 0.5001 * step), name
    size = sum(array.nbytes for array in written.values())
    assert size < 0.45 * sum(leaf.nbytes for leaf in trained.values())  # of so small a model much is not rounded
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["quantize"] == "int8"
    assert manifest["parameters"] == {
        name: {"shape": [*array.shape], "dtype": array.dtype.name} for name, array in written.items()
    }
    assert "rounded to int8" in (folder / "README.md").read_text()


def test_every_device_reads_its_part(folder):
    split, whole = load(folder, mesh=MeshShape(data=2, fsdp=4)).params, load(folder).params
    for name, leaf in whole.items():
        np.testing.assert_array_equal(split[name], leaf)


def test_both_compute_what_mmjax_does(folder):
    run, given = load(folder), {"image": examples(3)["image"], "text": [None, "two stars", None]}
    batch = run._batch(given, 3)
    plain = {"values": batch.values, "mask": batch.mask, "present": batch.present}
    plain = {part: {name: each[name] for name in run.model.encoders if name in each} for part, each in plain.items()}
    wanted = run.embed(**given)
    exported = jax_export.deserialize(bytearray((folder / "embed.stablehlo").read_bytes()))
    parameters = load_file(folder / "model.safetensors")
    session = onnxruntime.InferenceSession(folder / "embed.onnx")
    names = [each.name for each in session.get_outputs()]
    feeds = {f"{part}/{modality}": array for part, each in plain.items() for modality, array in each.items()}
    by_onnx = dict(zip(names, session.run(names, feeds), strict=True))
    for path, leaf in jax.tree_util.tree_flatten_with_path(exported.call(parameters, plain))[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(leaf, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(by_onnx[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, name: arrays.pop(f"{name}.scale"), "is int8, and the model in config.json has float32"),
        (lambda arrays, name: arrays.update({f"{name}.scale": np.ones(7, "f")}), "which does not fit"),
        (lambda arrays, name: arrays.update({"other.scale": np.ones(7, "f")}), "has an unknown parameter other.scale"),
    ],
)
def test_scales_that_do_not_fit_are_named(folder, tmp_path, change, message):
    for path in folder.rglob("*"):
        if path.is_file():
            copied = tmp_path / path.relative_to(folder)
            copied.parent.mkdir(exist_ok=True)
            copied.write_bytes(path.read_bytes())
    arrays = load_file(folder / "model.safetensors")
    change(arrays, next(name for name, array in arrays.items() if array.dtype == np.int8))
    weights = tmp_path / "model.safetensors"
    save_file(arrays, weights)
    manifest = json.loads((tmp_path / "export.json").read_text())
    manifest["files"]["model.safetensors"] = {"size": weights.stat().st_size, "sha256": sha256(weights)}
    (tmp_path / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        load(tmp_path)
