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
from launch.overrides import resolve
from mmjax import config
from mmjax.data.loader import Loader
from mmjax.errors import UserError
from mmjax.evaluation.generated import Asked, judge, read_back
from mmjax.evaluation.reader import Reader
from mmjax.heads import Regress
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.loop import Program, train
from mmjax.training.run import Run
from mmjax.types import Image
from tests.system.conftest import TINY

STEPS = 3
ONE = MeshShape(data=1)
SPLIT = MeshShape(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    words = (f"train.steps={STEPS}", "train.ema=0.5", "mesh.data=1", f"run_dir={folder / 'run'}", f"data_dir={folder}")
    made = resolve(load_experiment("scenes"), [*TINY, *words])
    train(made)
    return made


@pytest.fixture(scope="module")
def held_out(experiment):
    """The nine scenes of the validation split."""
    data = experiment.data.bind(experiment.data_dir, experiment.run_dir)
    return data, Loader(data, experiment.data_dir, "validation", 9).batch(0).batch


@contextlib.contextmanager
def opened(experiment, modality, features, mesh=SPLIT, rules="fsdp_tensor"):
    with jax.set_mesh(mesh.build()):
        yield Reader(experiment.run_dir, modality, features, rules=PRESETS[rules])


@pytest.fixture(scope="module")
def alone(experiment, held_out):
    """What the model with averaged parameters says of each example by itself, seeing one modality."""
    mesh = ONE.build()
    with jax.set_mesh(mesh):
        rules = PRESETS["data"]
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        abstract = Program(Run(experiment, sharding), rules, sharding).abstract
        with contextlib.closing(Checkpoints(experiment.run_dir, experiment.checkpoint, read_only=True)) as checkpoints:
            model = checkpoints.restore(abstract).state.ema

        @functools.cache
        def ask(modality, row):
            batch = jax.tree.map(lambda array: array[row : row + 1].copy(), held_out[1])
            for name in set(batch.present) - {modality}:
                batch.present[name][:] = False
            placed = jax.device_put(batch, sharding)
            fused, _ = model(placed)
            said = model.predict(placed)
            return np.asarray(fused.pooled[0]), {name: np.asarray(said[name]["probabilities"][0]) for name in LABELS}

        yield ask


LABELS = ("shape", "colour", "size", "count")


@pytest.mark.parametrize("modality", ["image", "text"])
def test_what_is_read_is_what_the_model_says_of_the_modality_alone(experiment, held_out, alone, modality):
    data, batch = held_out
    values, mask = batch.values[modality], batch.mask.get(modality)
    with opened(experiment, modality, data.features) as reader:
        # Batches of 16: one that is not full; then one full one and a part of another.
        few = reader.read(values, mask)
        many = reader.read(*(None if array is None else np.concatenate([array, array]) for array in (values, mask)))
        none = reader.read(values[:0], None if mask is None else mask[:0])
    assert few.features.shape == (9, 32)
    assert few.probabilities["shape"].shape == (9, 3, len(data.features["shape"].names))
    assert none.features.shape == (0, 32)
    with jax.set_mesh(ONE.build()):
        for row in range(9):
            features, said = alone(modality, row)
            assert few.features[row] == pytest.approx(features, abs=2e-5)
            for name in LABELS:
                assert few.probabilities[name][row] == pytest.approx(said[name], abs=1e-5)
                assert (few.answers[name][row] == said[name].argmax(-1)).all()
    for once, twice in zip(jax.tree.leaves(few[1:]), jax.tree.leaves(many[1:]), strict=True):
        np.testing.assert_array_equal(np.concatenate([once, once]), twice)
    # What it sees is told apart: features are not those of the padding.
    assert np.ptp(few.features, axis=0).max() > 1e-3


def test_places_that_are_not_real_are_not_read(experiment, held_out):
    data, batch = held_out
    with opened(experiment, "text", data.features, ONE, "data") as reader:
        masked = reader.read(np.where(batch.mask["text"], batch.values["text"], 7), batch.mask["text"])
        plain = reader.read(batch.values["text"], batch.mask["text"])
        whole = reader.read(batch.values["text"])
    np.testing.assert_array_equal(masked.features, plain.features)
    assert np.abs(whole.features - plain.features).max() > 1e-3


def test_what_was_made_is_judged_by_a_named_reader(experiment, held_out):
    data, batch = held_out
    real, mask = batch.values["image"], batch.mask
    rng = np.random.default_rng(0)
    made = np.clip(real + 0.3 * rng.normal(size=real.shape), 0, 1).astype(np.float32)
    with opened(experiment, "image", data.features, ONE, "data") as reader:
        seen, shown = reader.read(real), reader.read(made)
        targets = reader.targets
    asked = {name: Asked(batch.values[target], mask[target]) for name, target in targets.items()}
    found = judge(shown, seen, asked)
    assert found.reader == f"scenes {config.fingerprint(experiment)}"
    names = {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert set(found.metrics) == names | {f"read_back/{name}/accuracy" for name in LABELS}
    json.dumps(found._asdict(), allow_nan=False)
    for name in LABELS:
        target = targets[name]
        places = [(e, s) for e in range(9) for s in range(mask[target].shape[1]) if mask[target][e, s]]
        right = [shown.probabilities[name][e, s].argmax() == batch.values[target][e, s] for e, s in places]
        assert found.metrics[f"read_back/{name}/accuracy"] == pytest.approx(np.mean(right))
    assert judge(seen, seen, {}).metrics["fid"] == pytest.approx(0, abs=1e-6)


def test_slots_that_were_not_asked_for_do_not_count(experiment, held_out):
    data, batch = held_out
    with opened(experiment, "image", data.features, ONE, "data") as reader:
        said = reader.read(batch.values["image"])
    answers = said.answers["shape"]
    mask = np.arange(3) < 2 + np.zeros((9, 1), int)
    wrong = np.where(mask, answers, (answers + 1) % 3)
    wrong[0, 0] = (wrong[0, 0] + 1) % 3
    assert read_back(said, {"shape": Asked(wrong, mask)}) == {"read_back/shape/accuracy": pytest.approx(17 / 18)}
    assert read_back(said, {"shape": Asked(wrong, np.zeros_like(mask))}) == {}
    with pytest.raises(UserError, match=r"^scenes \w+ reads no smell: it reads colour, count, shape, size$"):
        read_back(said, {"smell": Asked(wrong, mask)})
    with pytest.raises(ValueError, match="cannot be compared"):
        judge(said, said._replace(reader="another"), {})


def test_mistakes_are_one_sentence(experiment, held_out, tmp_path):
    data, _ = held_out
    with pytest.raises(UserError, match="is no run directory"):
        Reader(tmp_path, "image", data.features, rules=PRESETS["data"])
    with pytest.raises(UserError, match=r"cannot judge speech: it reads image, text$"):
        Reader(experiment.run_dir, "speech", data.features, rules=PRESETS["data"])
    with pytest.raises(UserError, match=r"image is Image\(height=64.*there and Image\(height=28"):
        Reader(experiment.run_dir, "image", {"image": Image(28, 28, 1)}, rules=PRESETS["data"])
    other = data.features | {"count": data.features["shape"]}
    with pytest.raises(UserError, match=r"count is Label\(.*there and Label\("):
        Reader(experiment.run_dir, "image", other, rules=PRESETS["data"])

    model = chz.replace(experiment.model, outputs={"position": Regress(target="count")})
    config.write(chz.replace(experiment, model=model), tmp_path / "wordless")
    with pytest.raises(UserError, match="no output of the kind Classify"):
        Reader(tmp_path / "wordless", "image", data.features, rules=PRESETS["data"])


def test_a_run_that_is_not_finished(experiment, held_out, tmp_path):
    data, _ = held_out
    begun = tmp_path / "begun"
    shutil.copytree(experiment.run_dir, begun)
    (begun / "checkpoints" / str(STEPS)).rename(begun / "checkpoints" / "1")
    with pytest.raises(UserError, match=f"there is no whole checkpoint of step {STEPS} in"), jax.set_mesh(ONE.build()):
        Reader(begun, "image", data.features, rules=PRESETS["data"])
    shutil.rmtree(begun / "checkpoints")
    with pytest.raises(UserError, match=f"there is no whole checkpoint of step {STEPS} in"), jax.set_mesh(ONE.build()):
        Reader(begun, "image", data.features, rules=PRESETS["data"])
    assert not (begun / "checkpoints").exists()
