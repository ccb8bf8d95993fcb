"""Why a small model that was trained here answers: on two devices, about labels that only one modality tells."""

import chz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.interactions import MOST_CHARACTERS, SIDE, Interactions
from mmjax.encoders import TextTransformer, ViT
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.run import EvalCheckpoint
from mmjax.evaluation.suites.attribution import choose_slots, explain, explainable
from mmjax.fusion import CrossAttention
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

RULES = PRESETS["data"]
STEPS, TRAIN, TEST, BATCH, SHOWN = 150, 2048, 21, 16, 3
# Two bits, both of which `a` tells, a text of letters; `b`, a picture, tells nothing.
DATA = Data(
    source=Interactions(unique_a=2, synergy=0, train=TRAIN, validation=1, test=TEST),
    inputs={
        "a": TextInput(length=MOST_CHARACTERS + 1),
        "b": ImageInput(size=SIDE, channels=1),
        "label": LabelInput(names=("0", "1", "2", "3")),
        "bits": LabelInput(field="a_bits", names=("0", "1"), slots=2),
    },
)
MODEL = Model(
    width=16,
    dtype="float32",
    encoders={"a": TextTransformer(depth=1, heads=2), "b": ViT(patch=8, depth=1, heads=2)},
    fusion=CrossAttention(depth=1, heads=2),
    outputs={"label": Classify(target="label")},
    modality_dropout=0.2,
)


def build(key):
    return MODEL.build(DATA.features, rules=RULES, rngs=nnx.Rngs(key))


def trained(sharding):
    """A model that tells the label from the letters, where it has them, and how often it was right at last."""
    whole = Loader(DATA, "", "train", TRAIN).batch(0).batch
    batches = jax.tree.map(lambda array: array.reshape(-1, 64, *array.shape[1:]), whole)
    batches = jax.device_put(batches, NamedSharding(sharding.mesh, RULES.spec(None, "batch")))
    model, optimizer = jax.jit(build)(jax.random.key(0)), optax.adam(1e-2)

    def step(state, number):
        model, moments = state
        batch = jax.tree.map(lambda array: array[number % len(array)], batches)
        key = jax.random.fold_in(jax.random.key(1), number)
        (_, metrics), slopes = jax.value_and_grad(lambda model: model.loss(batch, key), has_aux=True)(model)
        updates, moments = optimizer.update(slopes, moments)
        return (optax.apply_updates(model, updates), moments), metrics["label/accuracy"].value()

    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(STEPS)))
    (model, _), accuracy = run((model, optimizer.init(model)))
    return model, float(accuracy[-8:].mean())


@pytest.fixture(scope="module")
def findings():
    with jax.set_mesh(MeshShape(data=2).build()):
        sharding = NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch"))
        model, accuracy = trained(sharding)
        assert accuracy > 0.8  # in a fifth of the training, letters are hidden
        context = EvalContext(DATA, "", "test", BATCH, sharding, RULES)
        checkpoint = EvalCheckpoint(model, STEPS, Evaluator(context), build)
        return explain(context, checkpoint, examples=64, shown=SHOWN)


def test_the_modality_that_tells_the_label_has_the_attribution(findings):
    share = {name: findings.statistics[f"label/attribution/share/{name}"] for name in ("a", "b")}
    assert share["a"].value >= 0.9
    assert share["a"].value + share["b"].value == pytest.approx(1)
    shapley = {name: findings.statistics[f"label/shapley/{name}"].value for name in ("a", "b")}
    assert shapley["a"] > 10 * abs(shapley["b"])


def test_gradients_are_complete_and_depend_on_the_parameters(findings):
    assert findings.statistics["label/attribution/completeness_error"].value < 0.01
    assert abs(findings.statistics["label/attribution/randomised_correlation"].value) < 0.4


def test_every_example_counts_once(findings):
    assert {statistic.columns.shape for statistic in findings.statistics.values()} == {(TEST, 2)}
    assert {statistic.examples for statistic in findings.statistics.values()} == {TEST}
    assert {name.partition("/")[0] for name in findings.statistics} == {"label"}


def test_what_is_shown(findings):
    (section,) = findings.sections
    assert [row[0] for row in section.tables[0].rows] == ["a", "b"]
    assert [card.title for card in section.cards] == ["test/0", "test/1", "test/2"]
    records = DATA.open("", "test")
    for row, card in enumerate(section.cards):
        kinds = ["integrated gradients", "occlusion", "rollout"]
        assert [name for _, name in card.pictures] == ["b", *(f"b: {kind}" for kind in kinds)]
        assert all(uri.startswith("data:image/png;base64,") for uri, _ in card.pictures)
        assert [name for name, _ in card.words] == [f"a, {kind}" for kind in kinds]
        for _, words in card.words:
            assert [word for word, _ in words] == [records[row]["a"]]
            assert [abs(weight) for _, weight in words] == [1]
        said, true, *_ = card.lines
        assert said.startswith(f"predicted: {records[row]['label']} (probability ")
        assert true == f"true: {records[row]['label']}"


def test_one_of_several_answers_is_chosen_whatever_the_batch():
    real = np.array([[True, True, False], [False, False, False], [True, True, True], [True, True, True]])
    ids = ["test/1", "", "test/2", "test/7"]
    asked = choose_slots(ids, real)
    np.testing.assert_array_equal(asked.sum(1), real.any(1))
    assert not (asked & ~real).any()
    np.testing.assert_array_equal(choose_slots(ids[2:], real[2:]), asked[2:])
    many = choose_slots([str(number) for number in range(600)], np.ones((600, 3), bool))
    assert (abs(many.mean(0) - 1 / 3) < 0.06).all()


def test_what_sees_nothing_is_not_explained():
    with jax.set_mesh(MeshShape(data=1).build()):
        outputs = {"label": Classify(target="label"), "digits": Classify(target="bits")}
        model = jax.eval_shape(
            lambda key: chz.replace(MODEL, outputs=outputs).build(DATA.features, rules=RULES, rngs=nnx.Rngs(key)),
            jax.random.key(0),
        )
        assert explainable(model) == {"label": "label", "digits": "bits"}
        assert explainable(model.without_modalities({"a", "b"})) == {}
