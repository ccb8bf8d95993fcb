"""What trained models make of a text, a picture or a recording: files, the list of them, and every wrong request."""

import base64
import itertools
import json
import re
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import soundfile

from launch import export, generate
from mmjax.checkpoint.manager import Checkpoints
from mmjax.config import experiment_file
from mmjax.data.sources.drawing import COUNTS
from mmjax.data.sources.scenes import Scenes
from mmjax.errors import UserError
from mmjax.model import build_model
from mmjax.sharding.rules import PRESETS
from mmjax.types import Batch
from tests.untrained import write_run

SENTENCE = "a red circle left of a blue square"
SHORT = (
    *("data.source.train=48", "data.source.validation=8", "data.source.test=8", "train.steps=3", "train.batch_size=8"),
    *("model.width=16", "model.dtype=float32", "model.unroll=false", "model.fusion=Concat"),
    "model.encoders.text.depth=1",
    *("model.encoders.text.heads=2", "checkpoint.every=3", "mesh.data=1"),
    *(f"model.outputs.{name}=None" for name in ("shape", "colour", "size", "speech_text")),
)
DRAWN = (
    *("data.source.speech=false", "data.inputs.speech=None", "model.encoders.speech=None", "train.ema=0.5"),
    *("model.encoders.image.depth=1", "model.encoders.image.heads=2", "model.outputs.image_text.size=16"),
    *("model.outputs.image_text.heads=2", "model.outputs.image=Vae", "model.outputs.image.target=image"),
    *("model.outputs.image.widths=8,8,8", "model.outputs.writer=TextDecoder", "model.outputs.writer.target=text"),
    *("model.outputs.writer.depth=1", "model.outputs.writer.heads=2"),
)
SPOKEN = (
    *("model.encoders.image=None", "model.outputs.image_text=None", "model.outputs.position=None"),
    *("model.encoders.speech.heads=2", "model.encoders.speech.depth=1", "model.outputs.speech=Vae"),
    *("model.outputs.speech.target=speech", "model.outputs.speech.widths=8,8"),
    *("data.inputs.wave=WaveformInput", "data.inputs.wave.field=speech", "data.inputs.wave.seconds=3.4"),
    *("model.outputs.wave=Vocoder", "model.outputs.wave.target=wave", "model.outputs.wave.mel=speech"),
    *("model.outputs.wave.factors=8,5,4", "model.outputs.wave.channels=8", "model.outputs.wave.kernels=3"),
    *("model.outputs.wave.dilations=1", "model.outputs.wave.windows=128", "model.outputs.wave.adversary=None"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, data_dir) -> Path:
    """A run that makes pictures and texts, counts and places."""
    return write_run(tmp_path_factory.mktemp("runs") / "drawn", data_dir, *SHORT, *DRAWN)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, data_dir) -> Path:
    """A run that makes speech."""
    return write_run(tmp_path_factory.mktemp("runs") / "spoken", data_dir, *SHORT, *SPOKEN)


def make(run_dir: Path, out: Path, *words: str) -> dict:
    """Runs the command in this process; what its list of what was made holds."""
    assert generate.main([str(run_dir), f"out={out}", *words]) == 0
    return json.loads((out / "generation.json").read_text())


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory) -> tuple[Path, dict]:
    """All that the run makes of a sentence."""
    out = tmp_path_factory.mktemp("made")
    return out, make(drawn, out, f"from=text:{SENTENCE}", "n=3")


def test_an_export_makes_what_its_run_makes(made, drawn, tmp_path):
    assert export.main([str(drawn), f"out={tmp_path / 'export'}", "format=safetensors"]) == 0
    again = make(tmp_path / "export", tmp_path / "made", f"from=text:{SENTENCE}", "n=3")
    assert again == made[1]
    for name in again["files"]["image"]:
        assert (tmp_path / "made" / name).read_bytes() == (made[0] / name).read_bytes()


def test_everything_not_given_is_made(made, drawn):
    out, whole = made
    assert whole["prompt"] == {"text": SENTENCE}
    assert whole["files"] == {"image": ["image-1.png", "image-2.png", "image-3.png"]}
    assert (whole["seed"], whole["step"]) == (0, 3)
    assert whole["fingerprint"] == json.loads((drawn / "experiment.json").read_text())["fingerprint"]
    pictures = [cv2.imread(str(out / name)) for name in whole["files"]["image"]]
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    assert all((a != b).any() for a, b in itertools.pairwise(pictures))
    assert list(whole["answers"]) == ["count", "position"]
    ((count,),) = whole["answers"]["count"]
    assert count["class"] in COUNTS
    assert 1 / len(COUNTS) < count["probability"] <= 1
    (places,) = whole["answers"]["position"]
    assert [(len(place["mean"]), len(place["deviation"])) for place in places] == [(2, 2)] * 3


def test_answers_are_those_of_the_average_of_the_parameters(made, drawn):
    experiment = experiment_file.read(drawn)
    features = {name: input.feature for name, input in experiment.data.inputs.items()}
    text = experiment.data.fit_tokenizers("nowhere", drawn).inputs["text"]
    values, mask = text.read(SENTENCE, None)
    batch = Batch(
        {"text": values[None], "image": np.full((1, 64, 64, 3), np.nan, np.float32)},
        {"text": mask[None]},
        {"text": np.ones(1, bool), "image": np.zeros(1, bool)},
    )
    rules = PRESETS[experiment.rules]
    with jax.set_mesh(experiment.mesh.build(jax.devices()[:1])):
        model = jax.eval_shape(lambda key: build_model(key, experiment.model, features, rules), jax.random.key(0))
        checkpoints = Checkpoints(drawn, experiment.checkpoint, read_only=True)
        found = {}
        for part in ("ema", "model"):
            restored = checkpoints.restore({part: model}, partial=True)
            found[part] = restored.state[part].predict(jax.device_put(batch, rules.spec("batch")))["count"]
        checkpoints.close()
    said = made[1]["answers"]["count"][0][0]["probability"]
    assert said == pytest.approx(float(found["ema"]["probabilities"].max()), abs=1e-5)
    assert said != pytest.approx(float(found["model"]["probabilities"].max()), abs=1e-5)


def test_the_page_holds_all_of_it(made):
    out, whole = made
    page = (out / "report.html").read_text()
    assert SENTENCE in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    for name in whole["files"]["image"]:
        assert base64.b64encode((out / name).read_bytes()).decode() in page
    assert whole["answers"]["count"][0][0]["class"] in page
    assert whole["fingerprint"] in page


def test_the_sheet_shows_the_pictures_in_order(made):
    out, whole = made
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet.shape == (136, 3 * 136, 3)
    for place, name in enumerate(whole["files"]["image"]):
        tile = sheet[:128, 136 * place :][:, :128]
        assert (tile[::2, ::2] == cv2.imread(str(out / name))).all()


def test_what_is_made_follows_from_the_seed_alone(made, drawn, tmp_path):
    out, whole = made
    files = whole["files"]["image"]
    alone = make(drawn, tmp_path / "alone", f"from=text:{SENTENCE}", "n=3", "to=image", "step=3")
    assert alone["files"]["image"] == files
    assert "count" not in alone["answers"]
    other = make(drawn, tmp_path / "other", f"from=text:{SENTENCE}", "n=3", "to=image", "seed=1")
    assert other["seed"] == 1
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert (out / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_texts_are_written_as_asked(drawn, made, tmp_path):
    picture = made[0] / "image-1.png"
    plain = make(drawn, tmp_path / "plain", f"from=image:{picture}", "to=writer")
    # Nothing is drawn at random, so all eight are the same.
    assert plain["files"] == {"writer": ["writer-1.txt"]}
    assert (tmp_path / "plain" / "writer-1.txt").read_text() == plain["answers"]["writer"][0] + "\n"
    assert not (tmp_path / "plain" / "sheet.png").exists()
    warm = make(drawn, tmp_path / "warm", f"from=image:{picture}", "to=text", "n=4", "decoding.temperature=2")
    assert len(warm["files"]["writer"]) == 4
    assert len(set(warm["answers"]["writer"])) > 1
    likeliest = ("n=4", "decoding.temperature=2", "decoding.top_k=1")
    narrow = make(drawn, tmp_path / "narrow", f"from=image:{picture}", "to=text", *likeliest)
    assert narrow["answers"] == plain["answers"]


def test_several_things_are_given(drawn, made, tmp_path):
    picture = made[0] / "image-1.png"
    whole = make(drawn, tmp_path, f"from=image:{picture},text:a red circle, or so", "n=2")
    assert whole["prompt"] == {"image": str(picture), "text": "a red circle, or so"}
    assert list(whole["answers"]) == ["count", "position"]
    assert whole["files"] == {}
    page = (tmp_path / "report.html").read_text()
    assert "a red circle, or so" in page
    assert base64.b64encode(picture.read_bytes()).decode() in page
    both = make(drawn, tmp_path / "both", f"from=text:{SENTENCE},image:{picture}", "n=1", "to=text,image")
    assert {name: len(files) for name, files in both["files"].items()} == {"image": 1, "writer": 1}


def test_the_data_set_is_not_needed_and_the_run_is_left_alone(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(Scenes, "open", lambda *_: pytest.fail("opened the data set"))
    run = shutil.copytree(drawn, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert generate.main([str(run), f"from=text:{SENTENCE}", "to=count"]) == 0
    assert (run / "generated" / "generation.json").exists()
    shutil.rmtree(run / "generated")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_path_of_the_list_is_the_last_line(drawn, tmp_path, capsys):
    make(drawn, tmp_path, f"from=text:{SENTENCE}", "to=count")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "generation.json")


def test_speech_is_made_of_a_text(spoken, tmp_path):
    whole = make(spoken, tmp_path, f"from=text:{SENTENCE}", "n=2")
    assert whole["files"] == {"speech": ["speech-1.wav", "speech-2.wav"]}
    sounds = [soundfile.read(tmp_path / name) for name in whole["files"]["speech"]]
    assert [(rate, len(samples)) for samples, rate in sounds] == [(8000, 27200)] * 2  # 3.4 s
    assert all(0 < np.abs(samples).max() <= 1 for samples, _ in sounds)
    assert (sounds[0][0] != sounds[1][0]).any()
    page = (tmp_path / "report.html").read_text()
    for name in whole["files"]["speech"]:
        assert f"data:audio/wav;base64,{base64.b64encode((tmp_path / name).read_bytes()).decode()}" in page
    assert "media-src data:" in page
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (136, 2 * 136, 3)


@pytest.mark.parametrize("vocoder", [False, True])
def test_the_speed_of_speaking_is_told(vocoder, spoken, tmp_path, capsys):
    words = ["to=speech", "n=2", *([f"vocoder={spoken}"] if vocoder else [])]
    make(spoken, tmp_path, f"from=text:{SENTENCE}", *words)
    seconds, factor = re.match(
        r"generated in (\S+) s: 6\.8 s of sound, real-time factor (\S+)\n", capsys.readouterr().err
    ).groups()
    assert float(factor) == pytest.approx(float(seconds) / 6.8, rel=0.06)


def test_the_speed_of_writing_is_told(drawn, made, tmp_path, capsys):
    whole = make(drawn, tmp_path, f"from=image:{made[0] / 'image-1.png'}", "to=text", "n=3", "decoding.temperature=1")
    told = capsys.readouterr().err
    line = re.match(r"generated in (\S+) s: (\d+) tokens, (\S+) a second\n", told)
    seconds, tokens, rate = map(float, line.groups())
    assert rate == pytest.approx(tokens / seconds, rel=0.01)
    assert told.endswith(
        f"\nwriter: {', '.join(map(repr, whole['answers']['writer']))}\n"
        f"all of it on one page: {tmp_path / 'report.html'}\n"
    )
    assert tokens >= sum(len(answer.split()) for answer in whole["answers"]["writer"])


def test_a_text_that_is_written_once_counts_once(drawn, made, tmp_path, capsys):
    counts = []
    for copies in (1, 3):
        make(drawn, tmp_path, f"from=image:{made[0] / 'image-1.png'}", "to=text", f"n={copies}")
        counts.append(int(re.search(r"(\d+) tokens", capsys.readouterr().err).group(1)))
    assert counts[0] == counts[1] > 0


def test_a_vocoder_makes_the_sound(spoken, drawn, tmp_path, capsys):
    """Of the same frames as Griffin-Lim does otherwise, and only of frames like those it has learned from."""
    words = (f"from=text:{SENTENCE}", "to=speech", "n=2")
    plain = make(spoken, tmp_path / "plain", *words)
    voiced = make(spoken, tmp_path / "voiced", *words, f"vocoder={spoken}")
    assert plain["files"] == voiced["files"] == {"speech": ["speech-1.wav", "speech-2.wav"]}
    for name in voiced["files"]["speech"]:
        (griffin, rate), (made, other) = (soundfile.read(tmp_path / kind / name) for kind in ("plain", "voiced"))
        assert (rate, griffin.shape) == (other, made.shape)
        assert np.abs(griffin - made).max() > 1e-3
    capsys.readouterr()
    assert generate.main([str(spoken), f"out={tmp_path / 'not'}", *words, f"vocoder={drawn}"]) == 2
    assert "has no output of the kind Vocoder" in capsys.readouterr().err
    words = (f"from=text:{SENTENCE}", "to=count", f"vocoder={spoken}")
    assert generate.main([str(spoken), f"out={tmp_path / 'not'}", *words]) == 2
    assert "and count is none; leave it out" in capsys.readouterr().err


def test_answers_to_a_recording(spoken, shared_data, tmp_path):
    recording = shared_data / "fsdd" / "recordings" / "0_george_0.wav"
    whole = make(spoken, tmp_path, f"from=speech:{recording}")
    assert (list(whole["answers"]), whole["files"]) == (["count"], {})
    assert "data:audio/wav" in (tmp_path / "report.html").read_text()


CAN = "it can generate count, position, image, text"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["from=text:"], "text cannot be used: the text is empty"),
        (["from=text: "], "text cannot be used: the text is empty"),
        (
            [f"from=text:{'round ' * 30}"],
            r"text cannot be used: the text has \d+ tokens, its end included, and this model reads 24",
        ),
        (["from=image:"], "image: cannot be used: no file is named"),
        (["from=image:no.png"], "image:no.png cannot be used: No such file or directory"),
        (
            ["from=image:pyproject.toml"],
            r"image:pyproject.toml cannot be used: \d+ bytes are not an image that OpenCV can decode",
        ),
        (["from=image:launch"], "image:launch cannot be used: Is a directory"),
        (
            ["from=red circle"],
            "from=red circle must begin with what the run reads and a colon, such as from=image:...; it reads image,"
            " text",
        ),
        (
            ["from=speech:a.wav"],
            "from=speech:a.wav: the run does not read speech; it reads image, text",
        ),
        (["from=text:a,text:b"], "from=text:a,text:b gives text twice; give it once"),
        (["to=speech"], f"to=speech: this run does not generate it; {CAN}"),
        (["to=image_text"], f"to=image_text: this run does not generate it; {CAN}"),
        (["to=,"], f"to=, names nothing; {CAN}"),
        (["to=text"], "to=text: this output is not conditioned on text; give something else by from="),
        (["n=0"], "n=0: n must lie between 1 and 65536"),
        (["seed=-1"], "seed=-1: seed must not be negative"),
        (["step=2"], "there is no whole checkpoint of step 2 in .*; those there: 3"),
        (["decoding.top_p=0"], r"decoding.top_p=0.0: must lie in \(0, 1\]"),
        (
            ["to=image", "decoding.temperature=1"],
            "decoding says how texts and codes are written, and nothing of image is; leave it out",
        ),
        (["form=text:a"], "unknown key form; the nearest is from; .*"),
    ],
)
def test_a_wrong_request_is_one_line(words, line, drawn, tmp_path, capsys):
    given = [] if any(word.startswith("from=") for word in words) else [f"from=text:{SENTENCE}"]
    assert generate.main([str(drawn), f"out={tmp_path / 'out'}", *given, *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}\n", captured.err), captured.err
    assert not (tmp_path / "out").exists()


def test_nothing_is_made_of_nothing_unless_it_is_asked_for(drawn, tmp_path, capsys):
    assert generate.main([str(drawn), f"out={tmp_path / 'out'}"]) == 2
    line = f"error: say what is given, such as from=image:..., or what is generated from nothing by to=; {CAN}\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "out").exists()
    assert make(drawn, tmp_path / "out", "to=image", "n=2")["prompt"] == {}


def test_a_second_request_leaves_nothing_of_the_first(drawn, tmp_path):
    first = make(drawn, tmp_path, f"from=text:{SENTENCE}", "n=3", "to=image")
    (tmp_path / "image-9.txt").write_text("mine")
    second = make(drawn, tmp_path, f"from=text:{SENTENCE}", "n=2", "to=image")
    gone = set(first["files"]["image"]) - set(second["files"]["image"])
    assert gone == {"image-3.png"}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("image-1.png", "image-2.png", "image-9.txt", "sheet.png", "report.html", "generation.json")
    }


def test_a_sheet_goes_with_the_request_that_it_belongs_to(drawn, tmp_path):
    make(drawn, tmp_path, f"from=text:{SENTENCE}", "n=2", "to=image")
    make(drawn, tmp_path, f"from=text:{SENTENCE}", "n=2", "to=count")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "generation.json"}


@pytest.mark.parametrize("name", ["notes.txt", "report.html", "generation.json"])
def test_what_others_have_put_there_stays(name, drawn, tmp_path, capsys):
    (tmp_path / name).write_text("[1]")
    assert generate.main([str(drawn), f"from=text:{SENTENCE}", "to=count", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: out={tmp_path} holds other files than those of an earlier request; choose a new or an empty folder\n"
    )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "[1]")]


def test_what_could_not_be_written_to_its_end_is_written_over(drawn, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("mmjax.reports.gallery.write_gallery", full)
        assert generate.main([str(drawn), f"from=text:{SENTENCE}", "to=count", f"out={tmp_path}"]) == 2
    assert json.loads((tmp_path / "generation.json").read_text())["files"] == {}
    assert make(drawn, tmp_path, f"from=text:{SENTENCE}", "to=count")["answers"]


def test_a_run_that_makes_nothing_of_what_is_given(spoken, tmp_path, capsys):
    assert generate.main([str(spoken), "to=speech", "from=speech:a.wav"]) == 2
    assert capsys.readouterr().err == (
        "error: to=speech: this output is not conditioned on speech; give something else by from=\n"
    )


def test_no_run_and_no_checkpoint(drawn, tmp_path, capsys):
    assert generate.main([str(tmp_path), f"from=text:{SENTENCE}"]) == 2
    line = f"error: {tmp_path} is not a run directory: it has no experiment.json; run directories nearby: "
    assert capsys.readouterr().err.startswith(line)
    shutil.copy(drawn / "experiment.json", tmp_path)
    shutil.copytree(drawn / "tokenizers", tmp_path / "tokenizers")
    assert generate.main([str(tmp_path), f"from=text:{SENTENCE}"]) == 2
    line = f"error: {tmp_path} has no checkpoint; a run saves its first after checkpoint.every steps\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_cannot_be_written(drawn, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert generate.main([str(drawn), f"from=text:{SENTENCE}", "to=count", f"out={tmp_path / 'file' / 'out'}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}: Not a directory")
