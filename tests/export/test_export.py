"""An export gives what its run gives: by mmjax, by JAX alone, and by its own card."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import chz
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import export
from mmjax.checkpoint.exported import load_tokenizers
from mmjax.data.inputs import LabelInput
from mmjax.data.sources.base import Recording
from mmjax.data.tokenize import Bpe
from mmjax.errors import UserError
from mmjax.export.functions import Function, functions_of
from mmjax.export.stablehlo import export_stablehlo
from mmjax.inference import load
from mmjax.sharding.mesh import MeshShape
from tests.flags import flags
from tests.untrained import SENTENCE, STEP, WORDS, examples, write_run

GAIN = "encoders/image/norm/gain"
EVALUATED = {
    "test/count/accuracy": {"value": 0.25, "low": 0.125, "high": 0.5, "examples": 7},
    "test/image_text/loss": {"value": 2.5, "low": None, "high": None, "examples": 7},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "drawn", tmp_path_factory.mktemp("data"), *WORDS)
    (folder / "evaluations").mkdir()
    known = {"step": STEP, "fingerprint": "f", "data": {"test": "of the test"}, "readers": {}, "done": {}}
    (folder / "evaluations" / f"{STEP}.json").write_text(json.dumps(known | {"metrics": EVALUATED}))
    (folder / "data.json").write_text(json.dumps({"train": "of the training"}))
    return folder


@pytest.fixture(scope="module")
def folder(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "drawn"
    assert export.main([str(run_dir), f"out={out}", "license=apache-2.0"]) == 0
    return out


@pytest.fixture(scope="module")
def run(run_dir):
    return load(run_dir)


@pytest.fixture(scope="module")
def manifest(folder):
    return json.loads((folder / "export.json").read_text())


def leaves(tree):
    return jax.tree_util.tree_flatten_with_path(
        jax.tree.map(lambda leaf: leaf.samples if isinstance(leaf, Recording) else leaf, tree)
    )[0]


def assert_same(got, wanted, tolerance=0.0):
    got, wanted = dict(leaves(got)), dict(leaves(wanted))
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, str):
            assert got[name] == value
        else:
            np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance, err_msg=str(name))


def test_mmjax_opens_it_as_the_run(run, folder):
    again, given = load(folder), examples(3)
    assert (again.step, again.experiment) == (run.step, run.experiment)
    assert_same(again.params, run.params)
    for missing in ("image", "text", None):
        some = {name: values for name, values in given.items() if name != missing}
        assert_same(again.embed(**some), run.embed(**some))
        assert_same(again.predict(**some), run.predict(**some))
    assert_same(again.generate("image", text=SENTENCE, n=2, seed=5), run.generate("image", text=SENTENCE, n=2, seed=5))
    image = given["image"][0]
    assert again.generate("text", image=image) == run.generate("text", image=image)


def test_every_device_reads_its_part(run, folder):
    split = load(folder, step=STEP, mesh=MeshShape(data=2, fsdp=4))
    assert_same(split.params, run.params)
    assert len({leaf.sharding for leaf in split.params.values()}) > 1


# What a program has that knows nothing of mmjax; the card's own example comes first.
REST = """
import json, sys
given = np.load(sys.argv[1])
batch = {part: {} for part in batch}
for name in given.files:
    if name != "key":
        part, _, modality = name.partition("/")
        batch[part][modality] = given[name]
found = {}
for name, entry in json.load(open("export.json"))["functions"].items():
    with open(entry["files"]["stablehlo"], "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    result = exported.call(parameters, batch, *([given["key"]] if entry["draws"] else []))
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        assert entry["outputs"][path] == {"shape": ["batch", *leaf.shape[1:]], "dtype": leaf.dtype.name}
        found[f"{name}:{path}"] = np.asarray(leaf)
assert not [name for name in sys.modules if name.partition(".")[0] in ("flax", "orbax")]
np.savez(sys.argv[2], **found)
"""


def test_jax_alone_runs_the_functions(run, folder, tmp_path, record_property):
    card = (folder / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    given = examples(3) | {"speech": [None, *examples(2)["speech"]]}
    batch = run._batch(given, 3)
    key = jax.random.key(7)
    plain = {"values": batch.values, "mask": batch.mask, "present": batch.present}
    flat = {f"{part}/{name}": plain[part][name] for part in plain for name in run.model.encoders if name in plain[part]}
    np.savez(tmp_path / "given.npz", key=jax.random.key_data(key), **flat)
    script = f"import sys; sys.modules['mmjax'] = None\n{example}{REST}"
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XLA_FLAGS": flags(1)}
    words = [sys.executable, "-c", script, str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    done = subprocess.run(words, cwd=folder, env=surroundings, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "'pooled': (2, 16)" in done.stdout
    found = np.load(tmp_path / "found.npz")
    with jax.set_mesh(run.mesh):
        placed = jax.device_put(batch, run._sharding)
        wanted = {"embed": run._embed(run.model, placed, key=None)}
        outputs = tuple(run.model.outputs)
        wanted["predict"] = run._predict(run.model, placed, key=None, outputs=outputs)
        drawn = run._predict(run.model, placed, key=key, outputs=("image", "writer"))
    wanted |= {f"generate-{name}": each for name, each in drawn.items()}
    names, worst = set(), 0.0
    for name, tree in wanted.items():
        for path, leaf in leaves(tree):
            full = f"{name}:{jax.tree_util.keystr(path, simple=True, separator='/')}"
            names.add(full)
            np.testing.assert_allclose(found[full], leaf, rtol=1e-5, atol=1e-5, err_msg=full)
            worst = max(worst, float(np.abs(found[full] - np.asarray(leaf)).max(initial=0)))
    assert names == set(found.files)
    record_property("largest difference", worst)
    print("largest difference", worst)


def test_the_manifest_names_everything(run, folder, manifest):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "export.json"}
    assert {"config.json", "tokenizers/text.json", "README.md", "generate-image.stablehlo"} < files
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    parameters = load_file(folder / "model.safetensors")
    assert parameters.keys() == run.params.keys() == manifest["parameters"].keys()
    for name, leaf in run.params.items():
        np.testing.assert_array_equal(parameters[name], leaf)
        assert manifest["parameters"][name] == {"shape": [*leaf.shape], "dtype": leaf.dtype.name}
    assert [*manifest["functions"]] == ["embed", "predict", "generate-image", "generate-writer"]
    assert (manifest["step"], manifest["average"], manifest["metrics"]) == (STEP, True, EVALUATED)


def test_the_card_says_what_is_known(folder, manifest):
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\nlibrary_name: mmjax\n---\n')
    for text in (
        "| test/count/accuracy | 0.25 | 0.125 | 0.5 | 7 |",
        "| test/image_text/loss | 2.5 |  |  | 7 |",
        "| fingerprint of the data, train | `of the training` |",
        "| fingerprint of the data, test | `of the test` |",
        f"`{manifest['fingerprint']}`",
        "| image | float32 [batch, 16, 16, 3] |",
        "| text | int32 [batch, 24] | bool [batch, 24] |",
        "| `image_text/text` | float32 [batch, 16] |",
    ):
        assert text in card


def test_a_platform_without_a_kernel_is_named(run):
    from jax.experimental import pallas

    def kernel(read, write):
        write[...] = read[...]

    def call(parameters, batch):
        x = np.zeros((8, 128), np.float32)
        return {"x": pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)}

    function = Function("embed", "", call)
    with pytest.raises(UserError, match=r"embed cannot be exported for platforms=cpu: .*; export for tpu alone"):
        export_stablehlo(run, function, run.params, ["cpu", "tpu"])


def test_a_run_that_generates_nothing(run, monkeypatch):
    monkeypatch.setattr("mmjax.export.functions.generating_outputs", lambda run: {})
    assert [function.name for function in functions_of(run, None)] == ["embed", "predict"]
    with pytest.raises(UserError, match="what=generate: the run generates no text, image or audio"):
        functions_of(run, ("embed", "generate"))


# What came from elsewhere, or did not come whole


def edited(folder, **changes):
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(manifest | changes))


def listed(folder, name, **entry):
    files = json.loads((folder / "export.json").read_text())["files"]
    edited(folder, files=files | {name: files.get(name, {"size": 1, "sha256": ""}) | entry})


def resealed(folder, name):
    """Lists a changed file as it is now."""
    content = (folder / name).read_bytes()
    listed(folder, name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def truncate_and_reseal(folder):
    shorten(folder / "model.safetensors")
    resealed(folder, "model.safetensors")


def replace_by_link(folder):
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to("../elsewhere.json")


def change_parameters(folder, change):
    from safetensors.numpy import save_file

    parameters = load_file(folder / "model.safetensors")
    change(parameters)
    save_file(parameters, folder / "model.safetensors")
    resealed(folder, "model.safetensors")


def cast(parameters):
    parameters[GAIN] = parameters.pop(GAIN).astype(np.float16)


def without_tokenizer(folder):
    (folder / "tokenizers" / "text.json").unlink()
    files = json.loads((folder / "export.json").read_text())["files"]
    del files["tokenizers/text.json"]
    edited(folder, files=files)


def name_outside_tokenizer(folder):
    without_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = config["experiment"]["data"]["inputs"]["text"]["tokenizer"]
    tokenizer["file"] = "/etc/hostname"
    (folder / "config.json").write_text(json.dumps(config))
    resealed(folder, "config.json")


DAMAGE = {
    "another version": (lambda folder: edited(folder, format=2), "has the format 2, and this version of mmjax reads 1"),
    "no manifest": (lambda folder: (folder / "export.json").write_text("{"), "is not the manifest of an export"),
    "no list": (lambda folder: edited(folder, files=[]), "was changed: it does not list files"),
    "not listed": (lambda folder: edited(folder, files={}), "was changed: it does not list config.json"),
    "missing": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "model.safetensors is missing; copy the export",
    ),
    "cut short": (lambda folder: shorten(folder / "model.safetensors"), "model.safetensors is cut short: "),
    "longer": (lambda folder: (folder / "README.md").open("a").write("x"), "README.md was changed: it is not what"),
    "flipped": (
        lambda folder: (folder / "README.md").write_text((folder / "README.md").read_text().swapcase()),
        "README.md was changed: it is not what its SHA-256 says",
    ),
    "above": (lambda folder: listed(folder, "../secret"), "it lists '../secret', which is not a file in this folder"),
    "absolute": (lambda folder: listed(folder, "/etc/passwd"), "lists '/etc/passwd', which is not a file in this"),
    "link": (replace_by_link, "config.json is a link, and may lead outside this folder"),
    "folder": (lambda folder: listed(folder, "tokenizers"), "tokenizers was changed"),
    "truncated safetensors": (truncate_and_reseal, "model.safetensors is not valid safetensors"),
    "other parameters": (
        lambda folder: change_parameters(folder, lambda all: all.update(extra=np.zeros(1))),
        "has an unknown parameter extra",
    ),
    "fewer parameters": (
        lambda folder: change_parameters(folder, lambda all: all.pop(GAIN)),
        f"lacks parameter {GAIN}: it is not of the model in config.json",
    ),
    "other shape": (
        lambda folder: change_parameters(folder, lambda all: all.update({GAIN: np.zeros(3, "f")})),
        f"{GAIN} has the shape [3], and the model in config.json has [16]",
    ),
    "other dtype": (lambda folder: change_parameters(folder, cast), f"{GAIN} is float16, and the model"),
    "no tokenizer": (without_tokenizer, "text.json is missing, the tokenizer or the classes of text"),
    "outside tokenizer": (name_outside_tokenizer, "config.json was changed after the run wrote it"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_not_as_it_was_written_is_refused(folder, tmp_path, kind):
    change, says = DAMAGE[kind]
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(UserError) as error:
        load(copy)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_export_has_one_step(folder):
    with pytest.raises(UserError, match=f"is an export of step {STEP}, and has no step 2"):
        load(folder, step=2)


def test_no_tokenizer_outside_the_folder_is_read(run, tmp_path):
    text = run.data.inputs["text"]
    outside = chz.replace(text, tokenizer=Bpe(vocabulary=320, file="/etc/hostname"))
    for input in (outside, chz.replace(text, tokenizer=Bpe(vocabulary=320)), LabelInput()):
        with pytest.raises(UserError, match=r"text.json is missing, the tokenizer or the classes of text"):
            load_tokenizers(chz.replace(run.data, inputs={"text": input}), tmp_path)
