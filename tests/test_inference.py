"""A trained run in Python gives what its model gives, of arrays, files and bytes, in batches of any number."""

import json

import cv2
import jax
import numpy as np
import pytest
import soundfile
from jax.sharding import NamedSharding

from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.inference import load
from mmjax.sharding.mesh import MeshShape
from mmjax.types import Batch
from tests.launch.test_generate import DRAWN, SENTENCE, SHORT, SPOKEN, make
from tests.untrained import write_run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "drawn", data_dir, *SHORT, *DRAWN)


@pytest.fixture(scope="module")
def run(run_dir):
    return load(run_dir)


def pictures(count):
    return [*np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)]


def test_embeddings_are_those_of_the_model(run):
    images, texts = pictures(3), [SENTENCE, "a red circle", "a blue square"]
    found = run.embed(image=images, text=texts)
    values = {"image": np.stack(images) / np.float32(255), "text": np.stack([_ids(run, text) for text in texts])}
    masks = {"text": values["text"] != 0}
    batch = Batch(values, masks, {name: np.ones(3, bool) for name in values})
    with jax.set_mesh(run.mesh):
        placed = jax.device_put(batch, NamedSharding(run.mesh, run._rules.spec("batch")))
        streams, _ = run.model.encode(placed, None)
        fused, _ = run.model(placed)
        for side, name in enumerate(("image", "text")):
            wanted = run.model.outputs["image_text"].embed_modality(side, streams[name])
            np.testing.assert_allclose(found[f"image_text/{name}"], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(found[f"image_text/{name}"], axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(found["pooled"], fused.pooled, rtol=1e-4, atol=1e-4)


def _ids(run, text):
    return run.data.inputs["text"].read(text, None)[0]


def test_files_bytes_and_arrays_are_the_same(run, tmp_path):
    (image,) = pictures(1)
    coded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    (tmp_path / "image.png").write_bytes(coded)
    of_array = run.embed(image=image)["encoders/image"]
    for given in (coded, tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(run.embed(image=given)["encoders/image"], of_array)


def test_more_examples_than_a_batch_holds(run):
    images = pictures(70)
    together = run.predict(image=images)
    assert len(together["count"]) == len(together["image"]) == len(together["writer"]) == 70
    for row in (0, 69):
        alone = run.predict(image=images[row])
        assert alone["count"][0][0][0] == together["count"][row][0][0]
        assert alone["count"][0][0][1] == pytest.approx(together["count"][row][0][1], rel=1e-3)
        means = (found["position"]["mean"][place] for found, place in ((alone, 0), (together, row)))
        np.testing.assert_allclose(*means, rtol=1e-3, atol=1e-3)


def test_draws_are_those_of_the_command(run, run_dir, tmp_path):
    whole = make(run_dir, tmp_path, f"from=text:{SENTENCE}", "to=image", "n=3", "seed=5")
    images = run.generate("image", text=SENTENCE, n=3, seed=5)
    assert len(images) == 3
    for name, image in zip(whole["files"]["image"], images, strict=True):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / name))[..., ::-1], image)
    (text,) = run.generate("text", image=images[0])
    answers = make(run_dir, tmp_path, f"from=image:{tmp_path / 'image-1.png'}", "to=text", "n=1")["answers"]
    assert json.dumps(answers["writer"]) == json.dumps([text])


def test_speech_comes_as_a_recording(tmp_path_factory, data_dir, tmp_path):
    run = load(write_run(tmp_path_factory.mktemp("runs") / "spoken", data_dir, *SHORT, *SPOKEN))
    (sound,) = run.generate("speech", text=SENTENCE)
    assert isinstance(sound, Recording)
    soundfile.write(tmp_path / "sound.wav", sound.samples, sound.rate, subtype="FLOAT")
    given = Recording(np.asarray(sound.samples, np.float32), sound.rate)
    found = run.embed(speech=[given, tmp_path / "sound.wav"])["encoders/speech"]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_a_mesh_changes_nothing(run, run_dir):
    images = pictures(3)
    split = load(run_dir, step=3, mesh=MeshShape(data=4, fsdp=2))
    assert split.step == run.step == 3
    assert split.params.keys() == run.params.keys()
    np.testing.assert_allclose(
        split.embed(image=images)["pooled"], run.embed(image=images)["pooled"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run: run.embed(), "nothing is given; name at least one modality with an example"),
        (lambda run: run.embed(sound=b""), "embed got sound, which the run does not encode; it encodes image, text"),
        (
            lambda run: run.embed(image=pictures(2), text=["a"]),
            "all modalities need the same number of examples, and got",
        ),
        (lambda run: run.embed(image=[b"no image"]), "image[0] cannot be used"),
        (lambda run: run.embed(text=["a", "circle " * 99]), "text[1] cannot be used: the text has"),
        (lambda run: run.embed(image="nowhere.png"), "image[0] cannot be used: No such file or directory"),
        (lambda run: run.generate("music", text="a"), "generate(to='music'): the run generates"),
        (lambda run: run.generate("image", image=pictures(1)[0]), "generate(to='image'): image does not see image"),
        (lambda run: run.generate("image", text=["a", "b"]), "generate takes one example per modality"),
    ],
)
def test_wrong_requests_are_one_sentence(run, call, says):
    with pytest.raises(UserError) as error:
        call(run)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UserError, match=r"is not a run directory: it has no experiment.json"):
            load(path)
