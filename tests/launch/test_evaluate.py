"""What a run makes of held-out data, judged: against its own model asked by hand, and every wrong request."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from launch import command_line, evaluate
from launch.suites import SUITES
from launch.train import train
from mmjax.checkpoint.restore import restore_model
from mmjax.config import experiment_file
from mmjax.data.loader import Loader
from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.metrics.audio import frames, log_spectral_distance, mel_cepstral_distortion
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.small import put

# Sees pictures and words; makes pictures, texts, answers and waveforms.
RUN = (
    *("data.source.train=48", "data.source.validation=8", "data.source.test=7", "train.steps=3", "train.batch_size=8"),
    *("model.width=16", "model.unroll=false", "model.fusion=Concat", "model.encoders.text.depth=1"),
    *("model.encoders.text.heads=2", "model.encoders.speech=None", "model.outputs.writer.heads=2"),
    *(
        "data.inputs.speech=None",
        "data.inputs.mel=SpectrogramInput",
        "data.inputs.mel.field=speech",
        "data.inputs.mel.hop=0.02",
    ),
    *(
        "data.inputs.mel.seconds=0.4",
        "model.encoders.image.depth=1",
        "model.encoders.image.heads=2",
        "checkpoint.every=3",
        "mesh.data=1",
    ),
    *(f"model.outputs.{name}=None" for name in ("shape", "colour", "size", "position", "speech_text", "image_text")),
    *("model.outputs.image=Vae", "model.outputs.image.target=image", "model.outputs.image.widths=8,8,8"),
    *("model.outputs.writer=TextDecoder", "model.outputs.writer.target=text", "model.outputs.writer.depth=1"),
    *("data.inputs.wave=WaveformInput", "data.inputs.wave.field=speech", "data.inputs.wave.seconds=0.4"),
    *("model.outputs.wave=Vocoder", "model.outputs.wave.target=wave", "model.outputs.wave.mel=mel"),
    *("model.outputs.wave.factors=8,5,4", "model.outputs.wave.channels=8", "model.outputs.wave.kernels=3"),
    *("model.outputs.wave.dilations=1", "model.outputs.wave.windows=128", "model.outputs.wave.adversary=None"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    words = [*RUN, f"run_dir={folder / 'run'}", f"data_dir={folder}"]
    train(command_line.resolve(command_line.load_experiment("scenes"), words))
    return folder / "run"


def values(run):
    """All figures that are known of the run's only step, by name."""
    whole = json.loads((run / "evaluations" / "3.json").read_text())
    return {name: figure["value"] for name, figure in whole["metrics"].items()}


@pytest.fixture(scope="module")
def found(run):
    """What the command finds, once of all and once of the words alone; the run is its own reader."""
    assert evaluate.main([str(run), f"readers.image={run}"]) == 0
    assert evaluate.main([str(run), f"readers.image={run}", "given=text"]) == 0
    return values(run)


@pytest.fixture(scope="module")
def by_hand(run):
    """The inputs, the seven examples of the test split, what becomes of them, and what the pictures alone say."""
    experiment = experiment_file.read(run)
    data = experiment.data.fit_tokenizers(experiment.data_dir, run)
    batch = Loader(data, experiment.data_dir, "test", 7).batch(0).batch
    with jax.set_mesh(MeshShape(data=1).build()):
        rules = PRESETS["data"]
        model, _ = restore_model(experiment.model, run, data.features, rules, ema=experiment.train.ema is not None)
        placed = put(batch, rules)
        views, _ = jax.jit(lambda model, batch: model.views(batch, None))(model, placed)
        again = {
            name: jax.device_get(model.outputs[name].reconstruct(views[model.hidden_modalities[name]], placed))
            for name in ("image", "wave")
        }
        alone = model.without_modalities({"text"})
        said = jax.device_get(jax.jit(lambda model, batch: model.predict(batch))(alone, placed))
    return data, batch, again, said


def test_each_command_adds_to_what_is_known(found, run):
    whole = json.loads((run / "evaluations" / "3.json").read_text())
    fingerprint = json.loads((run / "experiment.json").read_text())["fingerprint"]
    assert whole["step"] == 3
    assert whole["fingerprint"] == fingerprint
    assert whole["readers"] == {"image": f"scenes {fingerprint}"}
    suites = [f"generation readers=image:{run.name}", "standard"]
    assert whole["done"] == dict.fromkeys(("test", "test given text"), suites)
    assert whole["data"]["test"].startswith("scenes/1.0.0/0/test/7/")
    for name, figure in whole["metrics"].items():
        assert set(figure) == {"value", "low", "high", "examples"}
        assert 1 <= figure["examples"] <= 7, name
        if figure["low"] is not None:
            assert figure["low"] <= figure["high"]
    exact = whole["metrics"]["test/count/accuracy"]
    assert exact["low"] <= exact["value"] <= exact["high"]
    page = (run / "evaluations" / "report.html").read_text()
    assert "test/count" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_usual_figures_are_those_of_training(found, run):
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    usual = {name: value for name, value in summary.items() if re.match("test/.*/", name)}
    assert {"test/count/accuracy", "test/writer/exact", "test/image/kl"} <= set(usual)
    for name, value in usual.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_what_is_not_given_is_not_seen(found):
    """Nor are outputs asked that then see nothing."""
    assert found["test given text/count/loss"] != found["test/count/loss"]
    assert not any(name.startswith("test given text/writer/") for name in found)


def test_pictures_are_coded_and_decoded(found, by_hand):
    _, batch, again, _ = by_hand
    errors = ((np.round(again["image"] * 255) - np.round(batch.values["image"] * 255)) ** 2).mean((1, 2, 3)) / 255**2
    metrics = found
    assert metrics["test/image/reconstruction/psnr"] == pytest.approx((-10 * np.log10(errors)).mean(), abs=0.01)
    assert 0 < metrics["test/image/reconstruction/ssim"] < 1
    for prefix in ("", "reconstruction/"):
        assert {f"test/image/{prefix}{name}" for name in ("fid", "kid", "recall", "coverage")} <= set(metrics)
    assert metrics["test/image/fid"] != metrics["test/image/reconstruction/fid"]


def test_true_pictures_are_read_too(found, by_hand):
    """By a model that sees nothing but the picture."""
    _, batch, _, said = by_hand
    right = said["count"]["probabilities"].argmax(-1) == batch.values["count"]
    metrics = found
    assert metrics["test/image/true/classifier_agreement/count/accuracy"] == pytest.approx(right.mean())
    assert "test/image/true/classifier_agreement/writer/word_error" in metrics
    assert 0 <= metrics["test/image/classifier_agreement/count/accuracy"] <= 1


def test_sounds_are_compared_with_the_recordings(found, by_hand):
    data, batch, again, _ = by_hand
    wave, mel = data.inputs["wave"], data.inputs["mel"]

    def distances(sounds):
        pairs = []
        for sound, truth, mask in zip(sounds, batch.values["wave"], batch.mask["wave"], strict=True):
            cut = Recording(sound.samples[: mask.sum()], wave.rate)
            said, true = (wave.read(x, None)[0][mask] for x in (cut, Recording(truth[mask], wave.rate)))
            cepstral = mel_cepstral_distortion(frames(said, wave.rate), frames(true, wave.rate))
            pairs.append((cepstral, log_spectral_distance(said, true, rate=wave.rate)))
        return np.mean(pairs, 0)

    vocoded = [Recording(x[mask], wave.rate) for x, mask in zip(again["wave"], batch.mask["wave"], strict=True)]
    griffin_lim = [mel.sound(x[m]) for x, m in zip(batch.values["mel"], batch.mask["mel"], strict=True)]
    metrics = found
    for prefix, sounds in (("reconstruction", vocoded), ("griffin_lim", griffin_lim)):
        cepstral, spectral = distances(sounds)
        assert metrics[f"test/wave/{prefix}/mel_cepstral_distortion"] == pytest.approx(cepstral, rel=1e-3)
        assert metrics[f"test/wave/{prefix}/log_spectral_distance"] == pytest.approx(spectral, rel=1e-3)


def test_what_was_made_is_shown_beside_what_is_true(found, run):
    folder = run / "evaluations" / "3"
    names = {path.name for path in (folder / "test").iterdir()}
    assert {"report.html", "sheet.png", "image-true-1.png", "image-made-7.png", "image-reconstruction-1.png"} <= names
    assert {"wave-true-1.wav", "wave-reconstruction-1.wav", "wave-griffin_lim-7.wav"} <= names
    page = (folder / "test-given-text" / "report.html").read_text()
    assert "scenes, step 3: test given text" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_draws_follow_from_the_seed(found, run):
    def fid(*words):
        assert evaluate.main([str(run), f"readers.image={run}", *words]) == 0
        return values(run)["test/image/fid"]

    before = found["test/image/fid"]
    assert fid("seed=1") != before == fid()


def test_texts_are_drawn_where_it_is_asked_for(found, run):
    def error(label, *words):
        assert evaluate.main([str(run), "given=image", "suite=standard", *words]) == 0
        return values(run)[f"test given image{label}/writer/character_error"]

    warm, hot = ("decoding.temperature=5",), " temperature 5.0"
    greedy, drawn = error(""), error(f"{hot} seed 0", *warm)
    assert greedy == error("", "decoding.beams=1") != drawn
    assert error(f"{hot} seed 0", *warm) == drawn != error(f"{hot} seed 1", *warm, "seed=1")


def test_results_that_were_damaged_are_left_alone(found, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "evaluations" / "3.json"
    path.write_text("{bad")
    assert evaluate.main([str(copy), "given=text", "suite=standard"]) == 2
    line = f"error: {path} is no evaluation in valid JSON, perhaps cut short; move it away, and ask again\n"
    assert capsys.readouterr().err.endswith(line)
    assert path.read_text() == "{bad"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["split=exam"], "there is no split 'exam': the source has train, validation, test"),
        (["given=smell"], "given=smell names smell, and the run reads image, text"),
        (["given=,"], "given=, names nothing; the run reads image, text"),
        (["examples=0"], "examples=0: examples must be at least 1"),
        (["seed=-1"], "seed=-1: seed must not be negative"),
        (["step=two"], "step=two: must be a checkpoint's number, latest, or all"),
        (["watch=true", "step=3"], "watch=true: watch evaluates every step: leave step out"),
        (["suite=looks"], "suite=looks is unknown; there are standard, generation, .*, and all"),
        (
            ["suite=slices", "slices=smell"],
            "slices=smell is no field that tells kinds of examples apart; those are count",
        ),
        (["step=2"], "there is no whole checkpoint of step 2 in .*; those there: 3"),
        (["readers.text=RUN"], "readers.text has nothing to read: the run makes image, wave"),
        (["given=image", "readers.image=RUN"], "readers.image has nothing to read: the run makes .* of image"),
        (["readers.image=nowhere"], "nowhere is no run directory: it holds no experiment.json"),
        (["readers.wave=RUN"], "the run .* cannot judge wave: it reads image, text"),
        (["readers.image=RUN", "examples=3"], "3 real examples are too few to compare: give 6 or more"),
        (["labels=count"], "labels is for suite=probe or zero_shot, which is not asked for; .*"),
        (
            ["suite=standard", "examples=3"],
            "examples is for suite=generation or attribution, which is not asked for; .*",
        ),
        (["spilt=test"], "unknown key spilt; the nearest is split; .*"),
    ],
)
def test_a_wrong_request_is_one_line(words, line, run, capsys):
    assert evaluate.main([str(run), *(word.replace("RUN", str(run)) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}", captured.err.splitlines()[-1]), captured.err


def test_a_suite_that_nobody_asked_for_is_skipped(tmp_path, capsys, monkeypatch):
    """A run that makes nothing has nothing for the suites there are by default; asked for, that is an error."""
    monkeypatch.setitem(evaluate.SUITES, "generation", dataclasses.replace(SUITES["generation"], run=lambda *_: None))
    session = SimpleNamespace(
        open=lambda step: SimpleNamespace(step=3),
        request=evaluate.Evaluation(run_dir=str(tmp_path)),
        run_dir=tmp_path,
        mesh=MeshShape(data=1).build(),
        label="test",
        experiment=SimpleNamespace(name="nothing"),
        fingerprint="0",
        records=SimpleNamespace(fingerprint="1"),
        readers={},
    )
    evaluate._evaluate(session, {"generation": "generation"}, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 3: generation", "step 3: generation skipped, this run makes no pictures and no sounds"]
    session.request = evaluate.Evaluation(run_dir=str(tmp_path), suite=("generation",))
    with pytest.raises(UserError, match=r"suite=generation has nothing to judge in .*; leave it out"):
        evaluate._evaluate(session, {"generation": "generation"}, None)
