"""What a run makes of held-out data, judged: against its own model asked by hand, and every wrong request."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from launch import command_line, evaluate
from launch.train import train
from mmjax.checkpoint.restore import restore_model
from mmjax.config import experiment_file
from mmjax.data.loader import Loader
from mmjax.data.sources.base import Recording
from mmjax.errors import UserError
from mmjax.evaluation.results import Results
from mmjax.evaluation.suites import Generation
from mmjax.metrics.audio import log_mel_frames, log_spectral_distance, mel_cepstral_distortion
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.small import put
from tests.system.test_readme import python_block

# Sees pictures and words; makes pictures, texts, answers and waveforms.
RUN = (
    *("data.source.train=48", "data.source.validation=8", "data.source.test=7", "train.steps=3", "train.batch_size=8"),
    *(
        "model.width=16",
        "model.dtype=float32",
        "model.unroll=false",
        "data.workers=0",
        "model.fusion=Concat",
        "model.encoders.text.depth=1",
    ),
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
    assert evaluate.main([str(run), f"suites.generation.readers.image={run}"]) == 0
    assert evaluate.main([str(run), f"suites.generation.readers.image={run}", "given=text"]) == 0
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
        views, _ = jax.jit(lambda model, batch: model.fused_views(batch, None))(model, placed)
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
            cepstral = mel_cepstral_distortion(log_mel_frames(said, wave.rate), log_mel_frames(true, wave.rate))
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
    assert {
        "report.html",
        "sheet.png",
        "image-true-1.png",
        "image-generated-7.png",
        "image-reconstruction-1.png",
    } <= names
    assert {"wave-true-1.wav", "wave-reconstruction-1.wav", "wave-griffin_lim-7.wav"} <= names
    page = (folder / "test-given-text" / "report.html").read_text()
    assert "scenes, step 3: test given text" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_draws_follow_from_the_seed(found, run):
    def fid(*words):
        assert evaluate.main([str(run), f"suites.generation.readers.image={run}", *words]) == 0
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
    line = f"error: {path} is not an evaluation in valid JSON, perhaps cut short; move it away, and evaluate again\n"
    assert capsys.readouterr().err.endswith(line)
    assert path.read_text() == "{bad"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["split=exam"], "there is no split 'exam': the source has train, validation, test"),
        (["given=smell"], "given=smell names smell, and the run encodes image, text"),
        (["given=,"], "given=, names nothing; the run encodes image, text"),
        (["suites.generation.examples=0"], "suites.generation.examples=0: examples must be at least 1"),
        (["seed=-1"], "seed=-1: seed must not be negative"),
        (["step=two"], "step=two: must be a checkpoint's number, latest, or all"),
        (["watch=true", "step=3"], "watch=true: watch evaluates every step: leave step out"),
        (["suite=looks"], "suite=looks is unknown; there are standard, generation, attribution, .*, and all"),
        (
            ["suite=slices", "suites.slices.fields=smell"],
            "suites.slices.fields=smell is not a field with 2 to 3 values; those are count",
        ),
        (["step=2"], "there is no whole checkpoint of step 2 in .*; those there: 3"),
        (
            ["suites.generation.readers.text=RUN"],
            ".*readers.text has nothing to read: the run generates image, wave from .*",
        ),
        (
            ["given=image", "suites.generation.readers.image=RUN"],
            "suites.generation.readers.image has nothing to read: the run generates .* from image",
        ),
        (["suites.generation.readers.image=nowhere"], "nowhere is not a run directory: .*"),
        (["suites.generation.readers.wave=RUN"], "the run .* cannot judge wave: it reads image, text"),
        (
            ["suites.generation.readers.image=RUN", "suites.generation.examples=3"],
            "3 real examples are too few to compare: at least 6 are needed",
        ),
        (["suites.probe.labels=count"], "suites.probe.labels is set, but suite=probe is not evaluated; add it, .*"),
        (["labels=count"], "unknown key labels; the nearest is suites.probe.labels; .*"),
        (
            ["suite=standard", "suites.generation.examples=3"],
            "suites.generation.examples is set, but suite=generation is not evaluated; .*",
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
    """A run that generates nothing has nothing for the suites there are by default; named, that is an error."""
    monkeypatch.setattr(Generation, "run", lambda *_: None)
    run = SimpleNamespace(
        open=lambda step: SimpleNamespace(step=3),
        context=SimpleNamespace(split="test", clusters=None, records=SimpleNamespace(fingerprint="1")),
        run_dir=tmp_path,
        mesh=MeshShape(data=1).build(),
        label="test",
        experiment=SimpleNamespace(name="nothing"),
        fingerprint="0",
    )
    results, suites = Results(tmp_path), {"generation": Generation()}
    evaluate._evaluate(run, results, suites, True, None)
    lines = capsys.readouterr().err.splitlines()
    reason = "this run generates no images and no audio"
    assert lines[:2] == ["step 3: generation", f"step 3: generation skipped, {reason}"]
    assert lines[2:] == [f"page: {tmp_path / 'evaluations' / 'report.html'}"]
    with pytest.raises(UserError, match=rf"suite=generation has nothing to evaluate in .*; leave it out: {reason}"):
        evaluate._evaluate(run, results, suites, False, None)


def test_the_last_lines_are_a_verdict(run, capsys):
    assert evaluate.main([str(run), "suite=standard"]) == 0
    captured = capsys.readouterr()
    *_, count, image, wave, writer, page = captured.err.splitlines()
    known = json.loads((run / "evaluations" / "3.json").read_text())["metrics"]["test/count/accuracy"]
    interval = f"[{known['low']:.4g}, {known['high']:.4g}]"
    assert count.startswith(f"count: accuracy {known['value']:.4g} {interval}, loss ")
    for line, start in ((image, "image: loss "), (wave, "wave: loss "), (writer, "writer: accuracy ")):
        assert line.startswith(start)
    assert page == f"page: {run / 'evaluations' / 'report.html'}"
    assert captured.out == f"{run / 'evaluations' / '3.json'}\n"


def test_a_suite_of_ones_own_with_its_own_options(run, tmp_path, monkeypatch, capsys):
    """The one of the docs, in a module that modules= names."""
    (tmp_path / "own_suites.py").write_text(python_block("TopK"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        words = ["modules=own_suites", "suite=standard,top_k", "suites.top_k.output=count"]
        assert evaluate.main([str(run), *words, "suites.top_k.k=1"]) == 0
        assert values(run)["test/count/top_1"] == values(run)["test/count/accuracy"]
        assert evaluate.main([str(run), *words, "suites.top_k.k=3"]) == 0
        assert values(run)["test/count/top_3"] == 1
        done = json.loads((run / "evaluations" / "3.json").read_text())["done"]["test"]
        assert "top_k k=3 output=count" in done
        capsys.readouterr()
        assert evaluate.main([str(run), "modules=own_suites", "--help", "suites.top_k"]) == 0
        assert re.search(r"suites\.top_k\.k=5 +how many classes", capsys.readouterr().out)
    finally:
        sys.modules.pop("own_suites", None)
