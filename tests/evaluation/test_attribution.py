"""Attributions against scores whose reasons are known, and against models asked by hand; on two devices."""

import dataclasses
import functools
import itertools

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmjax.encoders import Recurrent, TextTransformer, ViT
from mmjax.evaluation.attribution import (
    Windows,
    answer,
    contributions,
    ends,
    integrated_gradients,
    log_probability,
    occlusion,
    rank_correlation,
    windows,
)
from mmjax.evaluation.rollout import rollout
from mmjax.fusion import Concat, CrossAttention
from mmjax.generators import TextDecoder
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import PADDING, Image, Label, Patches, Spectrogram, Text, Vector, Waveform
from tests.reference import draw
from tests.small import FEATURES, SIZE, make_batch, put

RULES = PRESETS["data"]
READ = {name: FEATURES[name] for name in ("image", "text", "speech")}
MODEL = Model(
    width=8,
    dtype="float32",
    encoders={"image": ViT(patch=4, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)},
    fusion=CrossAttention(depth=1, heads=2),
    outputs={"label": Classify(target="label"), "text": TextDecoder(target="text", depth=1, heads=2)},
)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


def compiled(function):
    return jax.jit(function)


def some_batch():
    """Example 0 has no picture, 1 no text, 2 nothing; what is not there is not even a number."""
    batch = make_batch()
    for name, rows in {"image": [0, 2], "text": [1, 2], "speech": [2]}.items():
        batch.present[name][rows] = False
        if name != "text":
            batch.values[name][rows] = np.nan
    return batch


def build(config=MODEL):
    return draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))


def weights():
    """Of every value of a picture, every id of a text, every value of a spectrum."""
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape) for name, shape in (("image", (8, 8, 1)), ("text", 16), ("speech", (10, 4)))}


def linear(batch):
    """A score that is the weighted sum of all values, texts given as shares."""
    return sum(
        (batch.values[name] * weight).sum(tuple(range(1, batch.values[name].ndim)))
        for name, weight in weights().items()
    )


def by_hand():
    """Values with texts as shares, what is real of them, and the baseline, example by example."""
    batch = some_batch()
    values, real, nothing = {}, {}, {}
    for name in READ:
        x = np.eye(16)[batch.values[name]] if name == "text" else np.array(batch.values[name], np.float64)
        there = batch.present[name].reshape(-1, *[1] * (x.ndim - 1)) & np.ones(x.shape, bool)
        if name != "image":
            there &= batch.mask[name].reshape(*batch.mask[name].shape, 1)
        base = np.zeros_like(x)
        for row in range(SIZE):
            if name == "image":
                base[row] = np.sort(x[row].ravel())[32]
            elif name == "text":
                base[row, :, PADDING] = 1
            elif there[row].any():
                base[row] = x[row][batch.mask[name][row]].min(0)
        values[name] = np.where(there, x, 0)
        real[name], nothing[name] = there, np.where(there, base, values[name])
    return values, real, nothing


def close(ours, theirs, tolerance=1e-4):
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=tolerance, err_msg=name)


def test_the_baseline_is_the_example_with_nothing_on_it():
    values, _, nothing = by_hand()
    given, start = compiled(lambda batch: ends(batch, READ))(put(some_batch(), RULES))
    close(given, values, 1e-6)
    close(start, nothing, 1e-6)


def test_sounds_and_quantities_begin_at_zero():
    batch = make_batch()
    given, nothing = ends(put(batch, RULES), {"place": FEATURES["place"]})
    real = batch.mask["place"]
    assert not np.asarray(nothing["place"])[real].any()
    np.testing.assert_array_equal(np.asarray(given["place"])[real], batch.values["place"][real])


def test_gradients_of_what_is_linear_are_weights_times_changes():
    values, _, nothing = by_hand()
    found = compiled(lambda batch: integrated_gradients(linear, batch, READ, panels=2))(put(some_batch(), RULES))
    expected = {name: (values[name] - nothing[name]) * weight for name, weight in weights().items()}
    expected["text"] = expected["text"].sum(-1)
    close(found.maps, expected)
    change = sum(change.reshape(SIZE, -1).sum(1) for change in expected.values())
    np.testing.assert_allclose(found.score - found.baseline, change, atol=1e-4)
    assert np.asarray(found.error).max() < 1e-4
    assert not np.asarray(found.maps["image"])[[0, 2]].any()
    assert not np.asarray(found.maps["text"])[[1, 2]].any()


@pytest.mark.parametrize("steepness", [1, 30, 1000])
def test_gradients_of_what_is_steep_are_complete(steepness):
    """A score that changes within a thousandth of the line, which evenly spread steps would miss."""
    batch = put(some_batch(), RULES)
    last, first = (linear(dataclasses.replace(batch, values=batch.values | end)) for end in ends(batch, READ))

    def steep(batch):
        passed = (linear(batch) - first) / jnp.where(last == first, 1, last - first)
        return 3 * jax.nn.sigmoid(steepness * (passed - 0.37))

    found = compiled(lambda batch: integrated_gradients(steep, batch, READ))(batch)
    change = abs(np.asarray(found.score - found.baseline))
    assert (change > 0.1).sum() == SIZE - 1  # one example has nothing
    assert (np.asarray(found.error) <= 0.01 * change + 1e-6).all()


def test_what_is_covered_is_missed():
    values, _, nothing = by_hand()
    pairs = np.array([0, 0, 1, 1, 1])
    covers = {name: windows(feature) for name, feature in READ.items()}
    covers["text"] = Windows(jnp.asarray(np.tile(pairs, (SIZE, 1))), 5)
    found = compiled(lambda batch: occlusion(linear, batch, READ, covers))(put(some_batch(), RULES))
    lost = {name: (values[name] - nothing[name]) * weight for name, weight in weights().items()}
    token = lost["text"].sum(-1)
    expected = {
        "image": lost["image"][..., 0],  # a pixel each
        "text": np.stack([token[:, pairs == pair].sum(1) for pair in pairs], 1),
        "speech": lost["speech"],  # a frame and a band each
    }
    close(found, expected)


def test_windows():
    square = windows(Image(16, 12, 3))
    assert square.count == 8 * 6
    assert square.places.shape == (1, 16, 12)
    assert (square.places[0, :2, :2] == 0).all()
    assert square.places[0, 15, 11] == 47
    tall = windows(Spectrogram(170, 40, 0.02))
    assert tall.count == 16 * 4
    assert (tall.places[0, :11, :10] == 0).all()
    assert tall.places[0, 11, 9] == 4
    sizes = {64: Waveform(640, 8000), 60: Patches(60, 4, 3), 5: Text(5, 16), 2: Label(("a", "b"), 2), 3: Vector(7, 3)}
    for count, feature in sizes.items():
        found = windows(feature)
        assert found.count == count
        assert set(found.places.ravel()) == set(range(count))


def test_contributions_are_the_mean_gains_over_all_orders():
    names = tuple(READ)
    worth = np.random.default_rng(4).normal(size=(SIZE, 2, 2, 2))

    def score(batch):
        seen = [batch.present[name].astype(int) for name in names]
        return jnp.asarray(worth)[(jnp.arange(SIZE), *seen)]

    batch = make_batch(presence=0.7)
    found = compiled(lambda batch: contributions(score, batch, names))(batch)
    for row, (there, gain) in itertools.product(range(SIZE), [(batch.present, worth)]):
        expected = dict.fromkeys(names, 0.0)
        orders = list(itertools.permutations(names))
        for order in orders:
            for place, name in enumerate(order):
                before, after = (
                    gain[(row, *(int(there[each][row] and each in order[:end]) for each in names))]
                    for end in (place, place + 1)
                )
                expected[name] += (after - before) / len(orders)
        for name in names:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-5)
            assert there[name][row] or found[name][row] == 0


def test_maps_are_compared_where_they_say_something():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, 5, 4, 6))
    first[:, :2], second[:, :2] = 0, 0
    second[1] = first[1] ** 3
    second[2] = -first[2]
    first[3] = second[3] = 0
    second[4] = 0
    found = rank_correlation(first, second)
    assert found[0] == pytest.approx(scipy.stats.spearmanr(first[0, 2:].ravel(), second[0, 2:].ravel()).statistic)
    assert found[1:3] == pytest.approx([1, -1])
    assert np.isnan(found[3:]).all()


@functools.cache
def explained(output, devices=1):
    """What an untrained model says, and why, of a batch on so many devices."""

    def compute(model, batch):
        said = answer(model, output, batch)
        asked = said != PADDING if output == "text" else jnp.broadcast_to(jnp.arange(2) == 1, said.shape)
        seen = {name: READ[name] for name in model.encoders if name not in model.hidden_modalities[output]}
        score = functools.partial(log_probability, model, output, said, asked)
        found = {
            "gradients": integrated_gradients(score, batch, seen),
            "occlusion": occlusion(score, batch, seen, {name: windows(seen[name]) for name in seen}),
            "shapley": contributions(score, batch, tuple(seen)),
            "rollout": rollout(model, output, said, asked, batch),
        }
        return RULES.gather(found)

    with jax.set_mesh(MeshShape(data=devices).build()):
        return jax.device_get(compiled(compute)(build(), put(some_batch(), RULES)))


@pytest.mark.parametrize("output", MODEL.outputs)
def test_a_models_gradients_are_complete(output):
    found = explained(output)["gradients"]
    change = abs(found.score - found.baseline)
    assert (change > 1e-3).sum() >= SIZE - 3
    assert (found.error <= 0.01 * change + 1e-4).all()


@pytest.mark.parametrize("output", MODEL.outputs)
def test_what_is_absent_has_no_part_in_an_answer(output):
    batch, found = some_batch(), explained(output)
    for kind in (found["gradients"].maps, found["occlusion"], found["shapley"], found["rollout"]):
        for name, values in kind.items():
            there = batch.present[name] & (name != output)
            each = abs(values.reshape(SIZE, -1)).sum(1)
            assert not each[~there].any()
            assert (each[there] > 0).all()
    total = sum(found["shapley"].values())
    assert total[2] == pytest.approx(0, abs=1e-6)  # this one has nothing


def test_the_same_on_two_devices():
    pairs = zip(jax.tree.leaves_with_path(explained("label")), jax.tree.leaves(explained("label", 2)), strict=True)
    for (path, one), two in pairs:
        np.testing.assert_allclose(one, two, atol=2e-3, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("text", [TextTransformer(depth=1, heads=2), Recurrent()], ids=["transformer", "recurrent"])
def test_the_score_is_the_negative_loss_and_shares_stand_for_ids(text):
    config = chz.replace(MODEL, encoders={**MODEL.encoders, "text": text}, fusion=Concat(hidden=8))
    batch = put(make_batch(), RULES)
    shares = dataclasses.replace(batch, values=batch.values | {"text": jax.nn.one_hot(batch.values["text"], 16)})

    def compute(model):
        scores = {
            name: log_probability(model, name, batch.values[name], batch.mask[name], batch) for name in model.outputs
        }
        said, there = batch.values["label"], batch.mask["label"]
        return scores, model.loss(batch)[1], log_probability(model, "label", said, there, shares)

    scores, metrics, moved = compiled(compute)(build(config))
    for name, score in scores.items():
        np.testing.assert_allclose(score, -metrics[f"{name}/loss"].totals, atol=1e-4)
    np.testing.assert_allclose(moved, scores["label"], atol=1e-5)
