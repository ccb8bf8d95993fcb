"""What is given to a trained model: whatever its size, mode or rate, it is read as an example would be."""

import io
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from tokenizers import Tokenizer, models

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.prompt import make_prompt
from mmjax.data.tokenize import Bpe, train_bpe
from mmjax.errors import UserError

INPUTS = {
    "image": ImageInput(size=16),
    "text": TextInput(length=12),
    "speech": SpectrogramInput(seconds=1.0, hop=0.02, bands=20),
    "count": LabelInput(names=("one", "two")),
}


def test_what_is_not_given_is_absent():
    batch = make_prompt(INPUTS, {"text": " ein Bär "})
    assert {name: bool(present[0]) for name, present in batch.present.items()} == {
        **dict.fromkeys(INPUTS, False),
        "text": True,
    }
    ids = batch.values["text"][0]
    assert ids.tolist()[:10] == [byte + 2 for byte in "ein Bär".encode()] + [1, 0][:2]
    assert batch.mask["text"][0].sum() == 9
    assert not batch.values["image"].any()
    assert not any(present[0] for present in make_prompt(INPUTS, {}).present.values())


def half_red() -> PIL.Image.Image:
    pixels = np.full((48, 64, 3), (0, 0, 255), np.uint8)
    pixels[:, :32] = (255, 0, 0)
    return PIL.Image.fromarray(pixels)


COLOURS = np.where(np.arange(16)[None, :, None] < 8, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)) + np.zeros((16, 1, 1))


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L", "LA", "I;16", "1", "CMYK"])
def test_pictures_of_any_size_and_mode(mode, tmp_path: Path):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        PIL.Image.fromarray(np.asarray(half_red().convert("L")).astype(np.uint16) * 256).save(path)
    else:
        half_red().convert(mode, **({"dither": 0} if mode == "1" else {})).save(path)
    batch = make_prompt(INPUTS, {"image": str(path)})
    assert batch.present["image"][0]
    found = batch.values["image"][0]
    if mode in ("RGB", "P", "RGBA", "CMYK"):
        sides = [*range(6), *range(10, 16)]  # a JPEG blurs the edge
        np.testing.assert_allclose(found[:, sides], COLOURS[:, sides], atol=0.05)
    else:
        luma = np.where(COLOURS[..., :1] == 1, 0.299, 0.114)  # ITU-R BT.601
        np.testing.assert_allclose(found, np.repeat(luma > 0.5 if mode == "1" else luma, 3, 2), atol=0.01)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode, tmp_path: Path):
    PIL.Image.new(mode, (20, 20), (0,) * len(mode)).save(tmp_path / "clear.png")
    assert (make_prompt(INPUTS, {"image": str(tmp_path / "clear.png")}).values["image"] == 1).all()


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 2), (11025, 1)])
def test_recordings_of_any_rate_and_channels(rate, channels, tmp_path: Path):
    soundfile.write(tmp_path / "plain.wav", tone(8000), 8000)
    # Another tone in opposite phases is nothing once the channels are mixed.
    other = 0.2 * np.sin(2 * np.pi * 1500 * np.arange(rate // 2) / rate)
    sound = np.stack([tone(rate) + other, tone(rate) - other], 1) if channels == 2 else tone(rate)
    soundfile.write(tmp_path / "other.wav", sound, rate)
    plain, found = (make_prompt(INPUTS, {"speech": str(tmp_path / f"{name}.wav")}) for name in ("plain", "other"))
    assert plain.mask["speech"].sum() == found.mask["speech"].sum() == 25
    loud = plain.values["speech"] > 1.5
    assert loud.sum() > 20
    np.testing.assert_allclose(found.values["speech"][loud], plain.values["speech"][loud], atol=0.35)
    assert (found.values["speech"].argmax(-1) == plain.values["speech"].argmax(-1)).all()


def test_a_longer_recording_is_cut(tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", tone(8000, 3.0), 8000)
    assert make_prompt(INPUTS, {"speech": str(tmp_path / "long.wav")}).mask["speech"].all()


def content(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "png":
        half_red().save(file, "PNG")
    else:
        soundfile.write(file, tone(8000), 8000, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("image", None, "No such file or directory"),
        ("image", b"", "the image is empty"),
        ("image", b"no picture", "10 bytes are not an image that OpenCV can decode"),
        ("image", content("png")[:-20], "the PNG ends early"),
        ("image", content("wav"), r"\d+ bytes are not an image that OpenCV can decode"),
        ("speech", content("png"), r"\d+ bytes are not a recording that libsndfile can decode"),
        ("speech", content("wav")[:-100], r"the WAV is truncated: \d+ bytes of \d+"),
        ("speech", b"", "0 bytes are not a recording that libsndfile can decode"),
        ("image", b"P5 60000 60000 255\n", "the image has 60000 x 60000 pixels, more than max_pixels=67108864"),
        ("count", b"three", "label 'three' is not one of the 2 names, such as one, two"),
    ],
)
def test_files_that_cannot_be_used(name, raw, reason, tmp_path: Path):
    path = tmp_path / "given"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError, match=f"^{re.escape(f'{name}:{path}')} cannot be used: {reason}$"):
        make_prompt(INPUTS, {name: str(path)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("a\udcff", "the text is not valid Unicode"),
        ("a red circle", "the text has 13 tokens, its end included, and this model reads 12"),
    ],
)
def test_texts_that_cannot_be_used(text, reason):
    with pytest.raises(UserError, match=f"^text cannot be used: {reason}$"):
        make_prompt(INPUTS, {"text": text})
    assert make_prompt(INPUTS, {"text": "a red circl"}).mask["text"].all()


def test_folders_and_odd_names_are_no_files(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be used: Is a directory$"):
        make_prompt(INPUTS, {"image": str(tmp_path)})
    with pytest.raises(UserError, match="cannot be used: "):
        make_prompt(INPUTS, {"image": "a\0b"})
    with pytest.raises(UserError, match=r"cannot be used: not a regular file$"):
        make_prompt(INPUTS, {"image": "/dev/zero"})
    with pytest.raises(UserError, match=r"cannot be used: .* there is no such user's home directory"):
        make_prompt(INPUTS, {"image": "~nobody-of-this-name/a.png"})


def test_unknown_words_fall_back_to_bytes(tmp_path: Path):
    (tmp_path / "learned.json").write_text(train_bpe(["a red circle"] * 50, 270))
    sentence = TextInput(length=30, tokenizer=Bpe(vocabulary=270, file=str(tmp_path / "learned.json")))
    said = "a mauve šílený 象"
    batch = make_prompt({"text": sentence}, {"text": said})
    assert sentence.decode(batch.values["text"][0]) == said


def test_letters_that_a_tokenizer_lacks_are_named(tmp_path: Path):
    vocabulary = {"<pad>": 0, "<end>": 1, **{letter: 2 + place for place, letter in enumerate("abcdr ei")}}
    Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "poor.json"))
    sentence = TextInput(length=30, tokenizer=Bpe(vocabulary=258, file=str(tmp_path / "poor.json")))
    assert (
        sentence.decode(make_prompt({"text": sentence}, {"text": "a bed"}).values["text"][0]).replace(" ", "") == "abed"
    )
    with pytest.raises(UserError, match=r"^text cannot be used: this model's tokenizer has nothing for l 象$"):
        make_prompt({"text": sentence}, {"text": "a red ball 象"})
