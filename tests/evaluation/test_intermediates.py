"""Every intermediate as a vector per example, against averages taken by hand of what the parts of a model return."""

import chz
import jax
import numpy as np
import pytest

from mmjax.encoders import AudioTransformer, ConvNet, Recurrent, TextTransformer
from mmjax.evaluation.intermediates import intermediates, names
from mmjax.fusion import Bottleneck, CrossAttention, Experts, Gated, Resampler
from mmjax.heads import Classify, Regress
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw
from tests.small import FEATURES, SIZE, make_batch, put

RULES = PRESETS["data"]
ATTENTIVE = Model(
    width=8,
    dtype="float32",
    encoders={"speech": AudioTransformer(depth=2, heads=2), "text": TextTransformer(depth=1, heads=2)},
    fusion=CrossAttention(depth=2, heads=2),
    outputs={"label": Classify(target="label"), "place": Regress(target="place")},
)
PLAIN = chz.replace(
    ATTENTIVE,
    encoders={
        "image": ConvNet(stem=2, widths=(4, 8), depths=(1, 2), kernel=3),
        "text": Recurrent(depth=2),
    },
    fusion=Gated(),
)
OWN = {"pooled", "fused"}


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=2).build()) as mesh:
        yield mesh


def build(config):
    return draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))


def compute(config):
    """What is found of a batch, some of whose features are absent, and what the parts of the model say themselves."""

    def run(model, batch):
        streams, between = model.encode(batch, None)
        return intermediates(model, batch, rules=RULES), streams, between, model.fuse(streams, (), None)

    batch = put(make_batch(presence=0.7), RULES)
    found, *parts = jax.jit(run)(build(config), batch)
    return jax.device_get(found), *parts


@pytest.fixture(scope="module")
def attentive():
    return compute(ATTENTIVE)


def mean(values, mask):
    """Over real tokens, one by one; zero where there are none."""
    pairs = zip(np.asarray(values, np.float64), np.asarray(mask), strict=True)
    rows = [tokens[real] for tokens, real in pairs]
    return np.stack([row.mean(0) if len(row) else np.zeros(row.shape[1]) for row in rows])


def test_attentive_models(attentive):
    found, streams, between, (fused, happened) = attentive
    expected = {"pooled": fused.pooled, "fused": mean(fused.tokens.values, fused.tokens.mask)}
    for name, tokens in streams.items():
        expected[f"encoders/{name}"] = mean(tokens.values, tokens.mask)
        for index, layer in enumerate(between[name]["layers"]):
            expected[f"encoders/{name}/layers/{index}"] = mean(layer, tokens.mask)
    for index in range(2):
        layer = np.concatenate([happened["layers"][name][index] for name in ("speech", "text")], 1)
        expected[f"fusion/layers/{index}"] = mean(layer, fused.tokens.mask)
    assert set(found) == set(expected)
    for name, vectors in jax.device_get(expected).items():
        assert found[name].dtype == np.float32
        assert found[name] == pytest.approx(vectors, abs=1e-6), name
    # The tokens of a transformer are those of its last block, normed, so their own mean is another one.
    assert np.abs(found["encoders/speech"] - found["encoders/speech/layers/1"]).max() > 1e-3


def test_models_of_other_kinds():
    found, streams, between, (fused, happened) = compute(PLAIN)
    there = np.asarray(streams["image"].mask).any(1)
    happened = jax.device_get(happened)
    assert set(found) == OWN | {
        *("encoders/image", "encoders/image/stage0/0", "encoders/image/stage1/0", "encoders/image/stage1/1"),
        *("encoders/text", "encoders/text/layer0", "encoders/text/layer1", "fusion/gates", "fusion/means"),
    }
    for stage, blocks in ((0, 1), (1, 2)):
        for block in range(blocks):
            grid = np.asarray(between["image"][f"stage{stage}"][block], np.float64)
            expected = np.where(there[:, None], grid.mean((1, 2)), 0)
            assert found[f"encoders/image/stage{stage}/{block}"] == pytest.approx(expected, abs=1e-6)
    layer = between["text"]["layer0"]
    assert found["encoders/text/layer0"] == pytest.approx(mean(layer, streams["text"].mask), abs=1e-6)
    assert found["fusion/gates"] == pytest.approx(happened["gates"].reshape(SIZE, 2 * 8))
    assert found["fused"] == pytest.approx(mean(fused.tokens.values, fused.tokens.mask), abs=1e-6)
    assert not there.all()


@pytest.mark.parametrize(
    ("fusion", "layers"),
    [
        (Bottleneck(depth=3, fusion_start=1, heads=2), 2),
        (Experts(depth=2, heads=2), 2),
        (Resampler(depth=1, heads=2), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_are_known_without_computing(fusion, layers):
    config = chz.replace(ATTENTIVE, encoders={"text": TextTransformer(depth=1, heads=2)}, fusion=fusion)
    found = names(build(config), put(make_batch(), RULES), rules=RULES)
    own = OWN | {"encoders/text", "encoders/text/layers/0"}
    assert set(found) == own | {f"fusion/layers/{index}" for index in range(layers)}


def test_the_fusion_does_not_see_what_no_output_sees(attentive):
    model, batch = build(ATTENTIVE), make_batch(presence=0.7)
    look = jax.jit(lambda model, batch: intermediates(model, batch, rules=RULES))
    hidden_modalities = jax.device_get(look(model.without_modalities({"text"}), put(batch, RULES)))
    whole = attentive[0]
    batch.present["text"][:] = False
    without = jax.device_get(look(model, put(batch, RULES)))
    for name in ("pooled", "fused", "fusion/layers/0"):
        assert hidden_modalities[name] == pytest.approx(without[name], abs=1e-6)
        assert np.abs(hidden_modalities[name] - whole[name]).max() > 1e-3
    assert hidden_modalities["encoders/text"] == pytest.approx(whole["encoders/text"], abs=1e-6)
