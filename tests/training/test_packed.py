"""A training step on packed sequences is the one on padded sequences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.command_line import load_experiment
from mmjax.compilation import cache_compilations
from mmjax.config.overrides import resolve
from mmjax.encoders import AudioTransformer, Recurrent, TextTransformer
from mmjax.errors import UserError
from mmjax.fusion import CrossAttention
from mmjax.generators import TextDecoder
from mmjax.heads import Classify, Contrast
from mmjax.layers.packed import unpack_batch
from mmjax.model import Model, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.training import loop
from mmjax.training.run_group import RunGroup
from tests.ablation.small import TINY
from tests.packing import pack
from tests.small import FEATURES, make_batch

RULES = PRESETS["fsdp"]
MODEL = Model(
    encoders={
        "text": TextTransformer(depth=1, heads=2),
        "speech": AudioTransformer(convolutions=1, depth=1, heads=2),
        "song": Recurrent(patch=2),
    },
    outputs={
        "label": Classify(target="label"),
        "words": TextDecoder(target="text", depth=1, heads=2),
        "match": Contrast(first="speech", second="text"),
    },
    fusion=CrossAttention(depth=1, heads=2),
    width=16,
    dtype="float32",
)
ROWS = {"text": (12, 8, 1), "speech": (20, 8, 2), "song": (16, 8, 2)}


@pytest.mark.parametrize("devices", [4])
def test_losses_and_gradients_are_those_of_padded_sequences(devices):
    padded = make_batch(presence=0.8)
    packed = padded
    for name, (length, rows, multiple) in ROWS.items():
        packed = pack(packed, name, length, rows, multiple, parts=4)
    with jax.set_mesh(MeshShape(fsdp=devices).build(jax.devices()[:devices])):
        model = jax.jit(lambda key: build_model(key, MODEL, FEATURES, RULES))(jax.random.key(0))
        spec = RULES.spec("batch")

        def run(batch):
            loss = lambda model, batch: model.loss(batch)  # noqa: E731
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(model, jax.device_put(batch, spec))

        (loss, metrics), grads = run(packed)
        (wanted_loss, wanted_metrics), wanted_grads = run(padded)
        restored = jax.jit(lambda batch: unpack_batch(batch, RULES))(jax.device_put(packed, spec))
    np.testing.assert_allclose(loss, wanted_loss, atol=1e-5)
    assert metrics.keys() == wanted_metrics.keys()
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric.value(), wanted_metrics[name].value(), atol=1e-5, err_msg=name)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for name in ROWS:
        real = padded.mask[name] & padded.present[name][:, None]
        assert np.array_equal(restored.mask[name], real)
        np.testing.assert_array_equal(np.asarray(restored.values[name])[real], padded.values[name][real])
    assert float(jnp.abs(loss)) > 0


PACKED = (
    "data.packing=Packing",
    "data.packing.features.a=PackedRows",
    "data.packing.features.a.length=24",
    *("data.source.b=sound", "data.inputs.b=SpectrogramInput", "data.inputs.b.seconds=0.48"),
    *("model.encoders.b=AudioTransformer",),
)


def _packs(name, keys):
    return any(key.startswith(f"data.packing.features.{name}.") for key in keys)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small experiment of texts and sounds, by keys."""
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))
    tiny = [word for word in TINY if not word.startswith(("seeds", "match"))]

    def experiment(run_dir, *keys):
        given = {word.partition("=")[0] for word in keys}
        replaced = tuple(f"{key}." for key in given)
        usual = [word for word in (*tiny, *PACKED) if word.partition("=")[0] not in given]
        usual = [word for word in usual if not word.startswith(replaced)]
        added = [f"data.packing.features.{name}=PackedRows" for name in ("b", "words") if _packs(name, keys)]
        words = [*usual, *added, *keys, f"data_dir={folder}", f"run_dir={run_dir}"]
        return resolve(load_experiment("interactions"), words)

    return experiment


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["mesh.data=2"], "set data.packing.parts to a multiple of 2"),
        (
            ["data.packing.features.b.length=50", "data.packing.features.b.multiple=4"],
            r"length=50 must be a multiple of 4, the positions",
        ),
        (["data.packing.features.b.length=52"], r"multiple=1 must be a multiple of 4"),
        (["train.accumulate=2"], r"train.accumulate cannot split packed rows: set train.accumulate=1"),
        (["data.packing.features.words.length=40"], r"packing.features.words has no inputs.words"),
        (["data.packing.features.b.length=24"], r"features.b.length=24 is shorter than an example of 4. positions"),
        (["data.packing.parts=3"], r"packing.parts=3 does not divide batch_size="),
        (
            ["data.packing.features.b.length=60", "model.encoders.b=ConvNet"],
            "model.encoders.b: ConvNet does not read packed sequences; leave data.packing.features.b out",
        ),
    ],
)
def test_packing_that_does_not_suit_is_one_sentence(small, tmp_path, keys, reason):
    with pytest.raises(UserError, match=reason) as raised:
        loop.train(small(tmp_path / "run", *keys))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_packed_run_resumes_where_it_stopped(small, tmp_path):
    keys = ("data.packing.features.b.length=60", "data.packing.features.b.multiple=4", "data.packing.window=4")
    keys = (*keys, "train.steps=6", "train.log_every=2", "checkpoint.every=3")
    whole = json.loads(loop.train(small(tmp_path / "whole", *keys)).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunGroup, "save", _stop_after(3, RunGroup.save))
        with pytest.raises(Stopped):
            loop.train(small(tmp_path / "cut", *keys))
    again = json.loads(loop.train(small(tmp_path / "cut", *keys)).read_text())
    assert again["examples_digest"] == whole["examples_digest"]
    assert again["parameters_digest"] == whole["parameters_digest"]
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    fills = [line["train/a_fill"] for line in lines if "train/a_fill" in line]
    assert len(fills) >= 3
    assert all(0.5 < fill <= 1 for fill in fills)
    assert all(line["train/cut_sequences"] == 0 for line in lines if "train/cut_sequences" in line)


class Stopped(Exception):
    """The test stops a run."""


def _stop_after(step, save):
    def stop(self, at, *args):
        save(self, at, *args)
        for run in self.runs:
            run.checkpoints.wait()
        if at == step:
            raise Stopped

    return stop
