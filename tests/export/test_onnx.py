"""An ONNX file computes in ONNX Runtime what the run does, and what cannot be converted is one sentence."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest

from launch import export
from mmjax.errors import UserError
from mmjax.export.functions import Function, functions_of
from mmjax.export.onnx import check_onnx, export_onnx, in_float32
from mmjax.inference import load
from tests.untrained import SMALLER, examples, write_run

HALF = ("model.dtype=bfloat16", "model.encoders.speech=None")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "drawn", tmp_path_factory.mktemp("data"), *SMALLER, *HALF)


@pytest.fixture(scope="module")
def run(run_dir):
    return in_float32(load(run_dir))


@pytest.fixture(scope="module")
def folder(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "drawn"
    assert export.main([str(run_dir), f"out={out}", "format=onnx"]) == 0
    return out


@pytest.mark.parametrize(("name", "count"), [("embed", 3), ("embed", 1), ("predict", 1)])
def test_onnx_runtime_computes_what_the_run_does(run, folder, name, count):
    batch = run._batch({"image": examples(3)["image"][:count], "text": [None, "two stars", None][-count:]}, count)
    plain = {"values": batch.values, "mask": batch.mask, "present": batch.present}
    plain = {part: {name: each[name] for name in run.model.encoders if name in each} for part, each in plain.items()}
    (function,) = functions_of(run, (name,))
    parameters = {path: np.asarray(leaf) for path, leaf in run.params.items()}
    wanted = jax.tree_util.tree_flatten_with_path(jax.jit(function.call)(parameters, plain))[0]
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    names = [each.name for each in session.get_outputs()]
    assert names == [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in wanted]
    feeds = {f"{part}/{modality}": array for part, each in plain.items() for modality, array in each.items()}
    for got, (path, want) in zip(session.run(names, feeds), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(path))


def test_the_manifest_says_how_far_it_was_checked(folder):
    functions = json.loads((folder / "export.json").read_text())["functions"]
    assert [*functions] == ["embed", "predict"]  # what draws is not among them
    assert functions["embed"]["onnx"]["batch"] == "batch"
    assert functions["predict"]["onnx"]["batch"] == 1  # it writes a text in a loop
    for entry in functions.values():
        assert 0 < entry["onnx"]["largest_difference"] < 1e-4
        assert set(entry["files"]) == {"onnx"}


def test_the_example_of_the_card_runs(folder):
    (example,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    script = f"import sys; sys.modules['mmjax'] = sys.modules['jax'] = None\n{example}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=os.environ, text=True, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "'pooled': (1, 16)" in done.stdout


def test_jax_is_as_it_was_before(folder):
    np.testing.assert_array_equal(jax.numpy.cumsum(jax.numpy.ones((2, 3)), 1), [[1, 2, 3]] * 2)


def test_what_cannot_be_converted_is_one_sentence(run, tmp_path, monkeypatch):
    def call(parameters, batch):
        x = batch["values"]["image"]
        return {"x": jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)}

    says = r"sine cannot be exported as ONNX: .*pure_callback.*; leave onnx out of format"
    with pytest.raises(UserError, match=says):
        export_onnx(run, Function("sine", "", call), run.params, tmp_path / "sine.onnx")
    more = Function("more", "", lambda parameters, batch: {"x": batch["values"]["image"] + 1})
    monkeypatch.setattr("mmjax.export.onnx.simplify", lambda function, *types: lambda *arrays: [arrays[0] + 1.001])
    with pytest.raises(UserError, match="more cannot be exported as ONNX: ONNX Runtime computes another x than JAX"):
        export_onnx(run, more, run.params, tmp_path / "more.onnx")
    monkeypatch.setattr("mmjax.export.onnx.LARGEST", 1000)
    with pytest.raises(UserError, match=r"the parameters take [\d,]+ bytes, and an ONNX file holds 2 GB"):
        check_onnx(run)
    assert not [*tmp_path.iterdir()]


def test_draws_are_not_for_onnx(run_dir, tmp_path, capsys):
    assert export.main([str(run_dir), f"out={tmp_path / 'out'}", "format=onnx", "what=embed,generate"]) == 2
    assert "what=generate: ONNX has no keys to draw from; leave generate out" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
