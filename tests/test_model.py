"""The whole model: what is absent reaches nothing, precision, dropout, and what cannot be built."""

import dataclasses
import functools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import AudioTransformer, ConvNet, Encoder, Recurrent, TextTransformer, ViT
from mmjax.errors import UserError
from mmjax.fusion import Concat, CrossAttention, Fusion
from mmjax.generators import TextDecoder
from mmjax.heads import Classify, Contrast, Regress
from mmjax.model import Model, drop_modalities
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch, Tokens
from tests.reference import draw
from tests.small import FEATURES, SIZE, make_batch, put

RULES = PRESETS["data"]
HEADS = {"label": Classify(target="label"), "place": Regress(target="place")}
ATTENTIVE = Model(
    width=8,
    dtype="float32",
    encoders={
        "image": ViT(patch=4, depth=1, heads=2),
        "text": TextTransformer(depth=1, heads=2),
        "speech": AudioTransformer(depth=1, heads=2),
    },
    fusion=CrossAttention(depth=1, heads=2),
    outputs={**HEADS, "align": Contrast(first="image", second="text", size=8, heads=2)},
)
PLAIN = Model(
    width=8,
    dtype="float32",
    encoders={
        "image": ConvNet(stem=4, widths=(8,), depths=(1,), kernel=3),
        "text": Recurrent(cell="gru"),
        "speech": Recurrent(cell="lstm"),
        "song": ConvNet(stem=2, widths=(8,), depths=(1,), kernel=3),
    },
    fusion=Concat(hidden=8),
    outputs={**HEADS, "align": Contrast(first="speech", second="song", kind="infonce", size=8, heads=2)},
)
MODELS = {"attentive": ATTENTIVE, "plain": PLAIN}


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def build(config):
    return draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))


@functools.cache
def compiled(name):
    """The model, and (loss, metrics), gradients and predictions of a batch, compiled once for all tests."""

    def compute(model, batch):
        return jax.value_and_grad(lambda model: model.loss(batch), has_aux=True)(model), model.predict(batch)

    model, run = build(MODELS[name]), jax.jit(compute)
    return model, lambda batch: run(model, put(batch, RULES))


def same(first, second):
    """Bit for bit, and finite."""
    pairs = zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True)
    for (path, ours), theirs in pairs:
        assert np.isfinite(ours).all(), jax.tree_util.keystr(path)
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))


def spoil(batch: Batch, how: str) -> Batch:
    """The batch with other values (and masks) in the place of everything absent."""
    rng = np.random.default_rng(5)
    values, masks = {}, {}
    for name, array in batch.values.items():
        if array.dtype.kind == "i":
            nonsense = rng.integers(-(2**31), 2**31, array.shape).astype(array.dtype)
        else:
            huge = (1e30 * rng.normal(size=array.shape)).astype(np.float32)
            nonsense = {"nan": np.full_like(huge, np.nan), "inf": np.full_like(huge, np.inf), "huge": huge}[how]
        there = batch.present[name]
        values[name] = np.where(there.reshape(-1, *[1] * (array.ndim - 1)), array, nonsense)
        if name in batch.mask:
            masks[name] = np.where(there[:, None], batch.mask[name], how == "huge")
    return Batch(values, masks, batch.present)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["nan", "inf", "huge"])
def test_what_is_absent_reaches_nothing(name, how):
    """Half of all features, targets too, are absent, one example has nothing at all: loss, gradients, predictions."""
    batch = make_batch(presence=0.5)
    for present in batch.present.values():
        present[0] = False
    assert all(0 < present.sum() < SIZE for present in batch.present.values())
    _, run = compiled(name)
    same(run(batch), run(spoil(batch, how)))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_present_reaches_the_outputs(name):
    """The test above could not fail if a modality were never read."""
    batch = make_batch()
    _, run = compiled(name)
    before = run(batch)[1]["label"]["probabilities"]
    for modality in MODELS[name].encoders:
        array = batch.values[modality]
        other = array % 15 + 1 if array.dtype.kind == "i" else array + 1
        changed = dataclasses.replace(batch, values=batch.values | {modality: other})
        after = run(changed)[1]["label"]["probabilities"]
        assert np.abs(np.asarray(before) - np.asarray(after)).max(axis=(1, 2)).min() > 0, modality


@pytest.mark.parametrize("name", MODELS)
def test_nothing_present(name):
    batch = spoil(make_batch(presence=0.0), "nan")
    _, run = compiled(name)
    ((loss, metrics), gradients), predictions = run(batch)
    assert float(loss) == 0
    assert all(float(metric.value()) == 0 for metric in metrics.values())
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(predictions))


@pytest.mark.parametrize("name", MODELS)
def test_examples_do_not_see_each_other(name):
    batch, other = make_batch(presence=0.8), make_batch(seed=1)
    _, run = compiled(name)
    keep = np.arange(SIZE) < 5
    mixed = jax.tree.map(lambda a, b: np.where(keep.reshape(-1, *[1] * (a.ndim - 1)), a, b), batch, other)
    first, second = run(batch)[1], run(mixed)[1]
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[keep], np.asarray(theirs)[keep])


def test_the_total_is_the_weighted_sum():
    model, run = compiled("attentive")
    (loss, metrics), _ = run(make_batch())[0]
    assert float(loss) == pytest.approx(sum(float(metrics[f"{name}/loss"].value()) for name in model.outputs), rel=1e-5)
    assert set(metrics) >= {"label/accuracy", "place/absolute_error", "align/batch_accuracy"}
    heavier = build(chz.replace(ATTENTIVE, outputs={"place": Regress(target="place", weight=2.5)}))
    batch = put(make_batch(), RULES)
    loss, metrics = jax.jit(lambda model: model.loss(batch))(heavier)
    assert float(loss) == pytest.approx(2.5 * float(metrics["place/loss"].value()), rel=1e-5)


def test_weights_are_those_of_the_losses():
    model, run = compiled("plain")
    batch = make_batch(presence=0.6)
    metrics = run(batch)[0][0][1]
    weights = model.loss_weights(put(batch, RULES))
    assert float(weights.pop("fusion")) == len(batch.present["label"])
    for name, weight in weights.items():
        assert float(weight) == float(metrics[f"{name}/loss"].weight) > 0


def test_bfloat16_stays_near_float32():
    """Parameters, losses and predictions are float32; tokens are not."""
    model = build(chz.replace(ATTENTIVE, dtype="bfloat16"))
    batch = make_batch(presence=0.7)

    def compute(model, batch):
        return model.loss(batch), model.predict(batch), model(batch)[0]

    (loss, metrics), predictions, fused = jax.jit(compute)(model, put(batch, RULES))
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, metrics, predictions, model))} == {jnp.dtype("float32")}
    assert fused.tokens.values.dtype == fused.pooled.dtype == jnp.bfloat16
    ((expected, _), _), precise = compiled("attentive")[1](batch)
    assert float(loss) == pytest.approx(float(expected), rel=0.05)
    near = np.abs(np.asarray(predictions["label"]["probabilities"]) - np.asarray(precise["label"]["probabilities"]))
    assert 0 < near.max() < 0.1


def streams_of(there):
    """Streams of two tokens, the first of them real where the modality is there."""
    masks = {name: np.stack([column, np.zeros_like(column)], 1) for name, column in zip("abc", there.T, strict=True)}
    spec = RULES.spec("batch")
    values = jax.device_put(np.zeros((len(there), 2, 4), np.float32), spec)
    return {name: Tokens(values, jax.device_put(mask, spec)) for name, mask in masks.items()}


def seen(streams):
    return np.stack([np.asarray(tokens.mask).any(1) for tokens in streams.values()], 1)


@pytest.mark.parametrize("rate", [0.3, 0.95])
def test_modality_dropout_never_hides_the_last(rate):
    rng = np.random.default_rng(0)
    there = rng.uniform(size=(4000, 3)) < 0.6
    kept = seen(drop_modalities(streams_of(there), rate, jax.random.key(0)))
    assert not (kept & ~there).any()
    np.testing.assert_array_equal(kept.any(1), there.any(1))
    # A modality goes with the rate's chance, except where all that there are would go: one of them stays.
    for count in (1, 2, 3):
        rows = there.sum(1) == count
        share = kept[rows].sum() / there[rows].sum()
        chance = 1 - rate + rate**count / count
        assert abs(share - chance) < 4 * (chance * (1 - chance) / there[rows].sum()) ** 0.5 + 1e-9


def test_modality_dropout_is_off_at_zero_and_with_one_modality():
    streams = streams_of(np.ones((4, 3), bool))
    assert drop_modalities(streams, 0.0, jax.random.key(0)) is streams
    alone = {"a": streams["a"]}
    assert drop_modalities(alone, 0.9, jax.random.key(0)) is alone


def test_a_key_means_training():
    """Dropout depends on the key, hides nothing from contrasts, and predictions know none."""
    config = chz.replace(PLAIN, dropout=0.5, modality_dropout=0.5)
    model, batch = build(config), put(make_batch(), RULES)
    run = jax.jit(lambda model, key: (model.loss(batch, key)[0], model(batch, key)[0]))
    (first, fused), (again, _), (other, _) = (run(model, jax.random.key(seed)) for seed in (0, 0, 1))
    assert float(first) == float(again) != float(other)
    assert all(np.asarray(tokens.mask).any(1).all() for tokens in fused.unimodal.values())
    evaluated = jax.jit(lambda model: model.predict(batch))(model)
    same(evaluated, compiled("plain")[1](make_batch())[1])


def test_an_encoder_or_output_of_none_is_left_out():
    config = chz.replace(
        PLAIN, encoders={**PLAIN.encoders, "image": None, "song": None}, outputs={**PLAIN.outputs, "align": None}
    )
    model = jax.eval_shape(lambda key: config.build(FEATURES, rules=RULES, rngs=nnx.Rngs(key)), jax.random.key(0))
    assert set(model.encoders) == {"text", "speech"}
    assert set(model.outputs) == {"label", "place"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoders": {"smell": ViT()}}, "model.encoders.smell has no data.inputs.smell to read"),
        ({"encoders": {"image": None}}, "at least one of model.encoders"),
        ({"outputs": {}}, "one of model.outputs"),
        ({"encoders": {**PLAIN.encoders, "image": TextTransformer()}}, "TextTransformer encodes Text, not Image"),
        (
            {"encoders": {**PLAIN.encoders, "song": None}},
            "Contrast.second=song is not one of the possible features: image, text, speech",
        ),
        (
            {"encoders": {name: encoder for name, encoder in PLAIN.encoders.items() if name != "song"}},
            "model.outputs.align reads the tokens of song, which has no model.encoders.song",
        ),
    ],
)
def test_what_cannot_be_built(changes, says):
    with pytest.raises(UserError) as error:
        jax.eval_shape(
            lambda key: chz.replace(PLAIN, **changes).build(FEATURES, rules=RULES, rngs=nnx.Rngs(key)),
            jax.random.key(0),
        )
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@chz.chz
class Zeros(Fusion):
    """Returns zeros of given shapes."""

    values: tuple[int, ...] = (SIZE, 3, 8)
    mask: tuple[int, ...] = (SIZE, 3)
    pooled: tuple[int, ...] = (SIZE, 8)

    def build(self, modalities, settings, rngs):
        return ZerosFusion(self)


class ZerosFusion(nnx.Module):
    def __init__(self, shapes):
        self.shapes = shapes

    def __call__(self, streams, key):
        tokens = object.__new__(Tokens)  # `Tokens(...)` checks its shapes in the test run
        object.__setattr__(tokens, "values", jnp.zeros(self.shapes.values))
        object.__setattr__(tokens, "mask", jnp.ones(self.shapes.mask, bool))
        return tokens, jnp.zeros(self.shapes.pooled), {}


@chz.chz
class Wide(Encoder):
    """Tokens of twice the width, which fit no fusion."""

    def build(self, feature, settings, rngs):
        return WideEncoder()


class WideEncoder(nnx.Module):
    def __call__(self, values, mask, key):
        return Tokens(jnp.zeros((*values.shape, 16)), mask), {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"fusion": Zeros(values=(SIZE, 3, 9))},
            "model.fusion: ZerosFusion returned tokens of shape [8, 3, 9]; expected [B N D] with B=8 and D=8",
        ),
        ({"fusion": Zeros(values=(2, 3, 8))}, "ZerosFusion returned tokens of shape [2, 3, 8]; expected [B N D]"),
        ({"fusion": Zeros(values=(SIZE, 8))}, "ZerosFusion returned tokens of shape [8, 8]; expected [B N D]"),
        (
            {"fusion": Zeros(mask=(SIZE, 4))},
            "ZerosFusion returned a mask of shape [8, 4]; expected [B N] with B=8 and N=3",
        ),
        (
            {"fusion": Zeros(pooled=(SIZE, 9))},
            "ZerosFusion returned a pooled summary of shape [8, 9]; expected [B D] with B=8 and D=8 (D is model.width)",
        ),
        ({"fusion": Zeros(pooled=(SIZE, 1, 8))}, "a pooled summary of shape [8, 1, 8]; expected [B D] with B=8"),
        (
            {"encoders": {"text": Wide()}},
            "model.encoders.text: WideEncoder returned tokens of shape [8, 5, 16]; expected [B N D] with B=8 and D=8",
        ),
    ],
)
def test_what_returns_a_wrong_shape_is_named(changes, says):
    plain = {"encoders": {"text": PLAIN.encoders["text"]}, "outputs": HEADS}
    with pytest.raises(UserError) as error:
        jax.eval_shape(
            jax.grad(loss_of(chz.replace(PLAIN, **plain | changes))), jnp.float32(0), put(make_batch(), RULES)
        )
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def loss_of(config):
    """The loss, times a number, of a model that is made while it is traced."""
    return lambda factor, batch: factor * config.build(FEATURES, rules=RULES, rngs=nnx.Rngs(0)).loss(batch)[0]


@pytest.mark.parametrize("key", ["dropout", "modality_dropout"])
def test_shares_lie_below_one(key):
    with pytest.raises(ValueError, match=key):
        chz.replace(PLAIN, **{key: 1.0})


def test_an_output_does_not_see_what_it_makes():
    outputs = {"label": Classify(target="label"), "text": TextDecoder(target="text", depth=1, heads=2)}
    model = build(chz.replace(ATTENTIVE, outputs=outputs))
    run = jax.jit(lambda model, batch: (model.predict(batch), model.loss(batch)[1]))
    batch = make_batch()
    words, pixels = batch.values["text"], batch.values["image"]
    (said, before), (same_said, _), (_, after) = (
        run(model, put(dataclasses.replace(batch, values=batch.values | changed), RULES))
        for changed in ({}, {"text": 16 - words}, {"image": 1 - pixels})
    )
    same(said["text"], same_said["text"])
    assert np.abs(np.asarray(said["label"]["probabilities"] - same_said["label"]["probabilities"])).max() > 1e-3
    assert abs(float(before["text/loss"].value() - after["text/loss"].value())) > 1e-4


def test_a_blindfolded_model_sees_what_an_absent_modality_lets_it():
    model, batch = build(ATTENTIVE), make_batch()
    absent = dataclasses.replace(batch, present=batch.present | {"text": np.zeros(SIZE, bool)})
    predict = jax.jit(lambda model, batch: model.predict(batch)["label"]["probabilities"])
    hidden_modalities = model.without_modalities({"text", "no encoder"})
    np.testing.assert_allclose(
        predict(hidden_modalities, put(batch, RULES)), predict(model, put(absent, RULES)), atol=1e-6
    )
    assert np.abs(predict(model, put(batch, RULES)) - predict(hidden_modalities, put(batch, RULES))).max() > 1e-4
    assert hidden_modalities.is_defined("label")
    assert not model.without_modalities(ATTENTIVE.encoders).is_defined("label")
    # What compares two modalities' own tokens cannot do with one.
    assert model.is_defined("align")
    assert not hidden_modalities.is_defined("align")
    assert model.without_modalities({"speech"}).is_defined("align")
