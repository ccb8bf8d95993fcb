"""What features know, and what prompts tell, against scikit-learn and a model asked by hand; on two devices."""

import functools
import itertools

import chz
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.drawing import COLOURS, SHAPES
from mmjax.data.sources.interactions import MOST_CHARACTERS, SIDE, Interactions
from mmjax.data.sources.scenes import Scenes
from mmjax.encoders import TextTransformer, ViT
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.suites.probe import Probe, probe
from mmjax.evaluation.suites.zero_shot import zero_shot
from mmjax.fusion import Concat
from mmjax.heads import Classify, Contrast
from mmjax.heads.contrast import ContrastHead
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw
from tests.small import put

RULES = PRESETS["data"]
BATCH, TRAIN, TEST = 16, 150, 37
AT = ("pooled", "encoders/a", "encoders/b")
# Four classes of which letters tell everything, and pictures nothing.
TOLD = Data(
    source=Interactions(unique_a=2, synergy=0, train=200, validation=5, test=TEST),
    inputs={
        "a": TextInput(length=MOST_CHARACTERS + 1),
        "b": ImageInput(size=SIDE, channels=1),
        "label": LabelInput(names=("0", "1", "2", "3")),
        "digits": LabelInput(field="a_bits", names=("0", "1"), slots=2),
        "nothing": LabelInput(field="b_bits", names=("0", "1")),
    },
)
TELLER = Model(
    width=16,
    dtype="float32",
    encoders={"a": TextTransformer(depth=1, heads=2), "b": ViT(patch=8, depth=1, heads=2)},
    fusion=Concat(hidden=16),
    outputs={"label": Classify(target="label")},
)
SCENES = Data(
    source=Scenes(train=40, validation=9, test=TEST, speech=False),
    inputs={
        "image": ImageInput(size=16),
        "text": TextInput(length=32),
        "shape": LabelInput(names=SHAPES, slots=3),
        "colour": LabelInput(names=COLOURS, slots=3),
    },
)
VIEWER = Model(
    width=16,
    dtype="float32",
    encoders={"image": ViT(patch=8, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)},
    fusion=Concat(hidden=16),
    outputs={
        "align": Contrast(first="image", second="text", size=8, heads=2),
        "shape": Classify(target="shape"),
    },
)
TEMPLATES = ("a {}", "a picture of a {}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make this ten times as slow."""
    with threadpool_limits(1):
        yield


def ask(suite, config, data, devices, **asked):
    """A suite about a model of random numbers, the same on any number of devices."""
    with jax.set_mesh(MeshShape(data=devices).build()):
        model = draw(lambda rngs: config.build(data.features, rules=RULES, rngs=rngs))
        context = make_context(data, BATCH)
        if suite is probe:
            return probe(context, model, Probe(**asked))
        return zero_shot(context, model, **asked)


def make_context(data, batch_size):
    sharding = NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch"))
    return EvalContext(data, "", "test", batch_size, sharding, RULES)


@functools.cache
def probed(devices=1):
    return ask(probe, TELLER, TOLD, devices, at=AT, examples=TRAIN)


@functools.cache
def described(devices=1):
    asked = {"output": "align", "templates": TEMPLATES}
    return [ask(zero_shot, VIEWER, SCENES, devices, label=label, **asked) for label in ("shape", "colour")]


def same(first, second):
    assert list(first.statistics) == list(second.statistics)
    for name, statistic in first.statistics.items():
        assert second.statistics[name].columns == pytest.approx(statistic.columns, abs=1e-6), name


def test_the_figures_there_are():
    figures = ["linear", "nearest", "few_shot_1", "few_shot_5", "few_shot_10"]
    names = itertools.product(("label", "digits"), AT, figures)
    assert list(probed().statistics) == [f"probe/{at}/{label}/{figure}_accuracy" for label, at, figure in names]
    (section,) = probed().sections
    (table,) = section.tables
    assert table.columns[:3] == ["intermediate", "label linear", "label nearest"]
    assert "digits few shot 10" in table.columns
    assert [row[0] for row in table.rows] == [*AT]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[1][1] == f"{probed().statistics['probe/encoders/a/label/linear_accuracy'].value:.4f}"


def test_what_can_be_read_is_read_and_what_cannot_is_not():
    found = probed().statistics
    for figure, least in (("linear", 0.9), ("nearest", 0.6), ("few_shot_10", 0.4)):
        assert found[f"probe/encoders/a/label/{figure}_accuracy"].value > least
        assert found[f"probe/encoders/b/label/{figure}_accuracy"].value < 0.5
    assert found["probe/pooled/label/linear_accuracy"].value > 0.6


def test_every_example_counts_once():
    for name, statistic in probed().statistics.items():
        each = 2 if "digits" in name else 1  # slots
        assert (statistic.columns[:, 1] == each).all()
        assert statistic.columns.shape == (TEST, 2)
        assert statistic.examples == TEST
        assert (statistic.columns[:, 0] <= each).all()


def test_neighbours_are_those_of_the_features_by_hand():
    """Of evenly spread training examples, each batch of them computed in one go."""
    spread = [index * 200 // TRAIN for index in range(TRAIN)]
    with jax.set_mesh(MeshShape(data=1).build()):
        model = draw(lambda rngs: TELLER.build(TOLD.features, rules=RULES, rngs=rngs))
        pooled = jax.jit(lambda model, batch: model(batch)[0].pooled)
        features, labels = [], []
        for split, size in (("train", 200), ("test", TEST)):
            batch = Loader(TOLD, "", split, size).batch(0).batch
            features.append(jax.device_get(pooled(model, put(batch, RULES))).astype(np.float64))
            labels.append(batch.values["digits"])
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    right = np.zeros(TEST)
    for slot in range(2):
        reference.fit(features[0][spread], labels[0][spread, slot])
        right += reference.predict(features[1]) == labels[1][:, slot]
    assert probed().statistics["probe/pooled/digits/nearest_accuracy"].columns[:, 0] == pytest.approx(right)


def test_examples_without_a_label_do_not_count():
    found = ask(probe, VIEWER, SCENES, 1, labels=("colour",)).statistics
    things = Loader(SCENES, "", "test", TEST).batch(0).batch.mask["colour"].sum(1)
    assert set(things) == {1, 2, 3}
    for statistic in found.values():
        np.testing.assert_array_equal(statistic.columns[:, 1], things)


def test_the_same_on_two_devices():
    same(probed(), probed(2))
    for one, two in zip(described(), described(2), strict=True):
        same(one, two)


def by_hand(label):
    """Cosines of every scene with every class, its prompts embedded one at a time; true classes, and how many."""
    with jax.set_mesh(MeshShape(data=1).build()):
        model = draw(lambda rngs: VIEWER.build(SCENES.features, rules=RULES, rngs=rngs))
        batch = Loader(SCENES, "", "test", TEST).batch(0).batch
        said = jax.jit(lambda model, batch: model.predict(batch)["align"])
        images = jax.device_get(said(model, put(batch, RULES)))["image"].astype(np.float64)
        classes = []
        for name in SCENES.features[label].names:
            both = []
            for prompt in (f"a {name}", f"a picture of a {name}"):
                values, mask = SCENES.inputs["text"].read(prompt, None)
                batch.values["text"][:], batch.mask["text"][:], batch.present["text"][:] = values, mask, True
                both.append(jax.device_get(said(model, put(batch, RULES)))["text"][0].astype(np.float64))
            mean = (both[0] + both[1]) / 2
            classes.append(mean / np.linalg.norm(mean))
    return images @ np.stack(classes).T, batch.values[label][:, 0], batch.mask[label].sum(1)


@pytest.mark.parametrize(("label", "place"), [("shape", 0), ("colour", 1)])
def test_classes_are_told_by_their_descriptions(label, place):
    cosines, truth, things = by_hand(label)
    found, single = described()[place], things == 1
    assert 5 < single.sum() < TEST
    order = (-cosines).argsort(1)
    accuracy = found.statistics[f"align/zero_shot/{label}/accuracy"]
    np.testing.assert_array_equal(accuracy.columns[:, 1], single)
    np.testing.assert_array_equal(accuracy.columns[:, 0], single & (order[:, 0] == truth))
    names = SCENES.features[label].names
    if len(names) > 5:
        top = found.statistics[f"align/zero_shot/{label}/top_5_accuracy"]
        np.testing.assert_array_equal(top.columns[:, 0], single & (order[:, 5] != truth))
        assert top.value < 1
    assert len(found.statistics) == (2 if len(names) > 5 else 1)
    rows = found.sections[0].tables[0].rows
    assert [row[0] for row in rows] == [*names]
    assert sum(int(row[1]) for row in rows) == single.sum()
    recalled = [float(row[2] or 0) * int(row[1]) for row in rows]
    assert sum(recalled) == pytest.approx(accuracy.columns[:, 0].sum(), abs=0.01 * len(names))


def test_examples_without_the_other_modality_do_not_count():
    hidden_modalities = chz.replace(SCENES, inputs={**SCENES.inputs, "image": ImageInput(size=16, field="nowhere")})
    found = ask(zero_shot, VIEWER, hidden_modalities, 1, output="align", label="colour", templates=TEMPLATES)
    assert {statistic.examples for statistic in found.statistics.values()} == {0}
    assert {tuple(row[1:]) for row in found.sections[0].tables[0].rows} == {("0", "", "", "")}


def test_embeddings_that_cannot_be_compared_are_no_answer(monkeypatch):
    embed = ContrastHead.embed_modality
    asked = {"output": "align", "label": "shape", "templates": ("a {}",)}
    for spoil in (0 * np.float32(1), np.float32("nan")):
        monkeypatch.setattr(ContrastHead, "embed_modality", lambda *given, spoil=spoil: spoil * embed(*given))
        assert ask(zero_shot, VIEWER, SCENES, 1, **asked).statistics["align/zero_shot/shape/accuracy"].value == 0


def test_features_that_are_not_finite():
    data = chz.replace(TOLD, source=chz.replace(TOLD.source, train=8, test=8))
    with jax.set_mesh(MeshShape(data=1).build()):
        model = draw(lambda rngs: TELLER.build(data.features, rules=RULES, rngs=rngs), scale=np.nan)
        options = Probe(at=("encoders/b",), labels=("label",))
        with pytest.raises(UserError, match=r"^features to probe are not finite: the model .* diverged$"):
            probe(make_context(data, 8), model, options)


@pytest.mark.parametrize(
    ("suite", "asked", "line"),
    [
        (probe, {"labels": ("taste",)}, "there is no label taste to probe; there are shape, colour"),
        (probe, {"at": ("middle",)}, "there is no intermediate middle; the model has encoders/image, .*, pooled"),
        (probe, {"at": ()}, "there is no probe of no intermediate; the model has encoders/image, .*"),
        (zero_shot, {"output": "shape"}, "shape does not align texts with something; there are align"),
        (zero_shot, {"label": "text"}, "there is no label text with classes to recognise"),
        (zero_shot, {"templates": ("a {}", "a")}, "templates need {} in the place of the class's name.*, not a {}; a"),
        (zero_shot, {"templates": ()}, "templates need {} .*, not none"),
        (zero_shot, {"templates": ("a {}" + " or so" * 9,)}, "text cannot be used: the text has 63 tokens, .*"),
    ],
)
def test_mistakes_are_one_sentence(suite, asked, line):
    usual = {"output": "align", "label": "shape", "templates": TEMPLATES} if suite is zero_shot else {}
    with pytest.raises(UserError, match=f"^{line}$"):
        ask(suite, VIEWER, SCENES, 1, **(usual | asked))


def test_where_no_label_is_left():
    with pytest.raises(UserError, match=r"^test and train have no example with nothing to probe$"):
        ask(probe, TELLER, TOLD, 1, labels=("nothing",))
