"""The standard suite: against scikit-learn, the outputs' own figures, and itself by other batches."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from scipy import stats
from sklearn import metrics as reference

from mmjax.data.inputs import LabelInput, VectorInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.encoders import TextTransformer, ViT
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import ResultCollector
from mmjax.evaluation.evaluator import evaluate_step
from mmjax.evaluation.suites.standard import class_table, key_metrics, median_figure, standard_metrics
from mmjax.fusion import Concat
from mmjax.heads import Classify, Contrast, Regress
from mmjax.metrics.retrieval import retrieval_metrics
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch
from tests.reference import draw
from tests.small import FEATURES, make_batch, put

RULES = PRESETS["data"]
E, GROUP = 13, 8
KINDS = FEATURES["label"].names


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def model():
    config = Model(
        width=16,
        dtype="float32",
        encoders={"image": ViT(patch=4, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)},
        fusion=Concat(hidden=16),
        outputs={
            "label": Classify(target="label"),
            "place": Regress(target="place"),
            "pair": Contrast(first="image", second="text", kind="infonce", size=8, heads=2),
        },
    )
    return draw(lambda rngs: config.build(FEATURES, rules=RULES, rngs=rngs))


@pytest.fixture(scope="module")
def examples() -> Batch:
    """Thirteen examples of which some lack something and nine share three texts, and padding up to 16 in which nothing
    is there."""
    batch = make_batch(seed=3, size=16, presence=0.8)
    for arrays in (batch.values, batch.mask):
        arrays["text"][:9] = np.tile(arrays["text"][:3], (3, 1))
    for present in batch.present.values():
        present[E:] = False
    return batch


@pytest.fixture(scope="module")
def outcomes(model, examples):
    """What the model did, in two batches and in one."""
    step = jax.jit(functools.partial(evaluate_step, rules=RULES, everything=False))

    def outcome(size):
        judge = ResultCollector(model, {})
        for begin in range(0, 16, size):
            rows = slice(begin, begin + size)
            ids = tuple(f"test/{row}" if row < E else "" for row in range(16)[rows])
            part = jax.tree.map(lambda array, rows=rows: array[rows], examples)
            judge.add(ids, jax.device_get(step(model, put(part, RULES), None)))
        return judge.result()

    return outcome(8), outcome(16)


def evaluated(model, result):
    inputs = {"label": LabelInput(names=KINDS, slots=2), "place": VectorInput(size=2, slots=2)}
    data = Data(source=Scenes(speech=False), inputs=inputs)
    sharding = NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch"))
    return standard_metrics(EvalContext(data, "", "test", 8, sharding, RULES, group_size=GROUP), model, result)


@pytest.fixture(scope="module")
def found(model, outcomes):
    return evaluated(model, outcomes[0])


def test_how_examples_are_put_into_batches_changes_nothing(model, outcomes, found):
    other = evaluated(model, outcomes[1])
    assert outcomes[0].ids == tuple(f"test/{row}" for row in range(E))
    assert found.statistics.keys() == other.statistics.keys()
    for name, statistic in found.statistics.items():
        assert statistic.columns.shape[0] == E
        assert other.statistics[name].value == pytest.approx(statistic.value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_classes_are_judged_as_by_scikit_learn(outcomes, found, examples):
    real = (examples.mask["label"] & examples.present["label"][:, None])[:E]
    truth = examples.values["label"][:E][real]
    probabilities = outcomes[0].predictions["label"]["probabilities"][real]
    said = probabilities.argmax(-1)
    value = {name: statistic.value for name, statistic in found.statistics.items()}
    assert value["label/accuracy"] == pytest.approx(reference.accuracy_score(truth, said))
    assert value["label/macro_f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert value["label/log_loss"] == pytest.approx(reference.log_loss(truth, probabilities, labels=range(3)), rel=1e-6)
    for place, kind in enumerate(KINDS):
        recall = reference.recall_score(truth, said, labels=[place], average="macro")
        assert value[f"label/recall/{kind}"] == pytest.approx(recall)
    (section,) = [section for section in found.sections if section.title == "label"]
    confusion = reference.confusion_matrix(truth, said, labels=range(3))
    assert section.tables == [class_table(KINDS, confusion)]
    assert len(section.drawings) == 2


def test_class_tables_are_those_of_scikit_learn():
    """A class that is never true has no recall, one that is never predicted no precision."""
    truth, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    table = class_table(("a", "b", "c"), reference.confusion_matrix(truth, predicted, labels=range(3)))
    assert table.columns == ["class", "examples", "recall", "precision", "F1"]
    metrics = reference.precision_recall_fscore_support(truth, predicted, labels=range(3), zero_division=np.nan)
    for row, name, precision, recall, f1, count in zip(table.rows, "abc", *metrics, strict=True):
        shown = ["" if np.isnan(value) else f"{value:.3f}" for value in (recall, precision, f1)]
        assert row == [name, str(count), *shown]
    assert table.rows[2][2] == ""


def test_alignments_are_judged_by_the_whole_gallery(model, outcomes, found, examples):
    """Where any text that reads like an example's own is right."""
    sides = [outcomes[0].predictions["pair"][side] for side in ("image", "text")]
    present = [examples.present[side][:E] for side in ("image", "text")]
    real = [row[mask].tolist() for row, mask in zip(examples.values["text"], examples.mask["text"], strict=True)]
    ids = [str(real[row]) if present[1][row] else str(row) for row in range(E)]
    expected = retrieval_metrics(*sides, *present, ids=ids, names=("image", "text"))
    assert expected != retrieval_metrics(*sides, *present, names=("image", "text"))
    for name, value in expected.items():
        assert outcomes[0].figures()[f"pair/{name}"] == value
        if "recall" in name:
            assert found.statistics[f"pair/{name}"].value == pytest.approx(value)
            assert found.statistics[f"pair/{name}"].examples <= E
        else:
            assert found.figures[f"pair/{name}"].value == value
    assert "pair/batch_accuracy" not in found.statistics


def test_the_loss_of_an_alignment_is_that_of_training_batches(outcomes, found):
    """By the output itself, of batches of as many as a group."""
    own = outcomes[0].metrics["pair/loss"]
    assert found.statistics["pair/loss"].value == pytest.approx(own.totals.sum() / own.weights.sum(), rel=1e-5)
    whole = outcomes[1].metrics["pair/loss"]
    assert abs(whole.totals.sum() / whole.weights.sum() - found.statistics["pair/loss"].value) > 1e-3


def test_the_loss_is_the_sum_of_the_outputs(found):
    parts = [found.statistics[f"{name}/loss"].value for name in ("label", "place", "pair")]
    assert found.statistics["loss"].value == pytest.approx(sum(parts), rel=1e-9)
    assert set(key_metrics(found)) == {
        "label/accuracy",
        "label/loss",
        "place/absolute_error",
        "place/loss",
        "pair/loss",
    }


def test_outputs_answer_alone_as_they_do_together(model, outcomes, examples):
    alone = model.with_outputs(["place"])
    said = jax.jit(lambda model, batch: model.predict(batch))(alone, put(examples, RULES))
    assert set(said) == {"place"}
    np.testing.assert_allclose(said["place"]["mean"][:E], outcomes[0].predictions["place"]["mean"], atol=1e-5)
    assert set(model.outputs) == {"label", "place", "pair"}


def test_a_median_lies_in_its_interval_as_often_as_it_says():
    held = 0
    for trial in range(400):
        figure = median_figure(np.random.default_rng(trial).exponential(size=41))
        held += figure.low <= np.log(2) <= figure.high
    assert 0.93 <= held / 400 <= 0.99
    assert median_figure(np.array([3.0])).low == 3.0
    values = np.arange(1, 101)
    figure = median_figure(values)
    low = stats.binom.ppf(0.025, 100, 0.5)
    assert (figure.value, figure.low, figure.high) == (50.5, low, 101 - low)
