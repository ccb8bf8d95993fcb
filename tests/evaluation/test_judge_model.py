"""A tiny trained classifier as a judge, against its own model asked one example at a time on one device."""

import contextlib
import functools
import json
import shutil

import chz
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from launch.command_line import load_experiment
from mmjax.checkpoint.manager import Checkpoints
from mmjax.config import experiment_file
from mmjax.config.overrides import resolve
from mmjax.data.loader import Loader
from mmjax.errors import UserError
from mmjax.evaluation.judge_model import Judgement, JudgeModel
from mmjax.evaluation.suites.generation import Targets, classifier_agreement, judge
from mmjax.heads import Regress
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.training.loop import train
from mmjax.training.run_dir import RunDir
from mmjax.training.train_program import TrainProgram
from tests.system.conftest import TINY

STEPS = 3
LABELS = ("shape", "count")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    words = (f"train.steps={STEPS}", "train.ema=0.5", "mesh.data=1", f"run_dir={folder / 'run'}", f"data_dir={folder}")
    tiny = [*(word for word in TINY if "image_text" not in word), "model.outputs.image_text=None"]
    made = resolve(load_experiment("scenes"), [*tiny, *words])
    train(made)
    return made


@pytest.fixture(scope="module")
def held_out(experiment):
    """The nine scenes of the validation split."""
    data = experiment.data.fit_tokenizers(experiment.data_dir, experiment.run_dir)
    return data, Loader(data, experiment.data_dir, "validation", 9).batch(0).batch


@pytest.fixture(scope="module")
def readers(experiment):
    """The reader of a modality, and what it reads, on a mesh that splits everything."""

    @functools.cache
    def reader(modality):
        return JudgeModel(experiment.run_dir, modality, rules=PRESETS["fsdp_tensor"])

    def read(modality, values, mask=None):
        with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()):
            return reader(modality).read(values, mask)

    return reader, read


@pytest.fixture(scope="module")
def alone(experiment, held_out):
    """What the model with averaged parameters says of each example by itself, seeing one modality, on one device."""
    mesh = MeshShape(data=1).build()
    with jax.set_mesh(mesh):
        rules = PRESETS["data"]
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        abstract = TrainProgram(experiment, RunDir(experiment, sharding).data, rules).abstract_state
        with contextlib.closing(Checkpoints(experiment.run_dir, experiment.checkpoint, read_only=True)) as checkpoints:
            model = checkpoints.restore(abstract).state.ema
    both = jax.jit(lambda model, batch: (model(batch)[0].pooled, model.predict(batch)))

    def ask(modality, row):
        # Twice, as JAX 0.12 does not let a batch of one through attention.
        batch = jax.tree.map(lambda array: array[[row, row]], held_out[1])
        for name in set(batch.present) - {modality}:
            batch.present[name][:] = False
        with jax.set_mesh(mesh):
            pooled, said = jax.device_get(both(model, jax.device_put(batch, sharding)))
        return pooled[0], {name: said[name]["probabilities"][0] for name in LABELS}

    return ask


@pytest.mark.parametrize("modality", ["image", "text"])
def test_what_is_read_is_what_the_model_says_of_the_modality_alone(held_out, readers, alone, modality):
    data, batch = held_out
    _, read = readers
    values, mask = batch.values[modality], batch.mask.get(modality)
    # Batches of 16: one that is not full; then a full one and a part of another; and nothing at all.
    few = read(modality, values, mask)
    many = read(modality, *(None if array is None else np.concatenate([array, array]) for array in (values, mask)))
    none = read(modality, values[:0], None if mask is None else mask[:0])
    assert few.features.shape == (9, 32)
    assert few.probabilities["shape"].shape == (9, 3, len(data.features["shape"].names))
    assert none.features.shape == (0, 32)
    for row in range(9):
        features, said = alone(modality, row)
        assert few.features[row] == pytest.approx(features, abs=2e-5)
        for name in LABELS:
            assert few.probabilities[name][row] == pytest.approx(said[name], abs=1e-5)
            assert (few.classes[name][row] == said[name].argmax(-1)).all()
    for once, twice in zip(jax.tree.leaves(few[1:3]), jax.tree.leaves(many[1:3]), strict=True):
        np.testing.assert_array_equal(np.concatenate([once, once]), twice)
    # Examples are told apart, by more than what was allowed above.
    assert np.ptp(few.features, axis=0).max() > 1e-3


def test_places_that_are_not_real_are_not_read(held_out, readers):
    _, batch = held_out
    _, read = readers
    values, mask = batch.values["text"], batch.mask["text"]
    plain = read("text", values, mask)
    np.testing.assert_array_equal(read("text", np.where(mask, values, 7), mask).features, plain.features)
    assert np.abs(read("text", values).features - plain.features).max() > 1e-3


def test_what_was_made_is_judged_by_a_named_reader(experiment, held_out, readers):
    _, batch = held_out
    reader, read = readers
    rng = np.random.default_rng(0)
    real = batch.values["image"]
    made = np.clip(real + 0.3 * rng.normal(size=real.shape), 0, 1).astype(np.float32)
    seen, shown = read("image", real), read("image", made)
    assert {name: input.field for name, input in reader("image").truth.items()} == {name: name for name in LABELS}
    assert reader("image").input.field == "image"
    asked = {name: Targets(batch.values[name], batch.mask[name]) for name in LABELS}
    distributions, statistics = judge(shown, seen, asked)
    assert shown.judge == reader("image").name == f"scenes {experiment_file.fingerprint(experiment)}"
    names = {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert set(distributions) == names
    assert set(statistics) == {
        f"classifier_agreement/{name}/{kind}" for name in LABELS for kind in ("accuracy", "exact")
    }
    json.dumps(distributions, allow_nan=False)
    for name in LABELS:
        truth, mask = batch.values[name], batch.mask[name]
        places = [(e, s) for e in range(9) for s in range(mask.shape[1]) if mask[e, s]]
        right = [shown.probabilities[name][e, s].argmax() == truth[e, s] for e, s in places]
        assert statistics[f"classifier_agreement/{name}/accuracy"].value == pytest.approx(np.mean(right))
        whole = [all(r for r, (e, _) in zip(right, places, strict=True) if e == row) for row in range(9)]
        assert statistics[f"classifier_agreement/{name}/exact"].value == pytest.approx(np.mean(whole))
    assert judge(seen, seen, {})[0]["fid"] == pytest.approx(0, abs=1e-6)


def test_slots_that_were_not_asked_for_do_not_count():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), (9, 3))
    said = Judgement("scenes 0123", rng.normal(size=(9, 4)), {"shape": probabilities, "size": probabilities[:, :1]}, {})
    answers = said.classes["shape"]
    mask = np.arange(3) < 2 + np.zeros((9, 1), int)
    wrong = np.where(mask, answers, (answers + 1) % 3)
    wrong[0, 0] = (wrong[0, 0] + 1) % 3
    found = {
        "classifier_agreement/shape/accuracy": pytest.approx(17 / 18),
        "classifier_agreement/shape/exact": pytest.approx(8 / 9),
    }
    said_back = classifier_agreement(said, {"shape": Targets(wrong, mask)})
    assert {name: statistic.value for name, statistic in said_back.items()} == found
    assert {statistic.examples for statistic in said_back.values()} == {9}
    assert classifier_agreement(said, {"shape": Targets(wrong, np.zeros_like(mask))}) == {}
    with pytest.raises(UserError, match=r"^scenes 0123 predicts no smell: it predicts shape, size$"):
        classifier_agreement(said, {"smell": Targets(wrong, mask)})
    with pytest.raises(ValueError, match="cannot be compared"):
        judge(said, said._replace(judge="another"), {})


def test_texts_are_compared_as_texts():
    said = Judgement("scenes 0123", np.zeros((2, 4)), {}, {"text": ["a red circle", "two blue stars"]})
    found = classifier_agreement(said, {"text": ["a red circle", "two green stars"]})
    assert found["classifier_agreement/text/exact"].value == 0.5
    assert found["classifier_agreement/text/word_error"].value == pytest.approx(1 / 6)
    assert classifier_agreement(said, {"text": []}) == {}


def test_mistakes_are_one_sentence(experiment, tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        JudgeModel(tmp_path, "image", rules=PRESETS["data"])
    with pytest.raises(UserError, match=r"cannot judge speech: it reads image, text$"):
        JudgeModel(experiment.run_dir, "speech", rules=PRESETS["data"])
    model = chz.replace(experiment.model, outputs={"position": Regress(target="count")})
    experiment_file.write(chz.replace(experiment, model=model), tmp_path / "wordless")
    with pytest.raises(UserError, match="no output that predicts classes or text"):
        JudgeModel(tmp_path / "wordless", "image", rules=PRESETS["data"])


def test_a_run_that_is_not_finished(experiment, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(experiment.run_dir, begun)
    (begun / "checkpoints" / str(STEPS)).rename(begun / "checkpoints" / "1")
    with (
        pytest.raises(UserError, match=f"there is no whole checkpoint of step {STEPS} in"),
        jax.set_mesh(MeshShape(data=1).build()),
    ):
        JudgeModel(begun, "image", rules=PRESETS["data"])
    shutil.rmtree(begun / "checkpoints")
    with (
        pytest.raises(UserError, match=f"there is no whole checkpoint of step {STEPS} in"),
        jax.set_mesh(MeshShape(data=1).build()),
    ):
        JudgeModel(begun, "image", rules=PRESETS["data"])
    assert not (begun / "checkpoints").exists()
