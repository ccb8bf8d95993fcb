"""Pictures, texts, labels and quantities to arrays, and every kind of damage to a reason."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from mmjax.data import TABLE
from mmjax.data.audio_inputs import AudioInput, SpectrogramInput, WaveformInput
from mmjax.data.clean import BadInput, decode_image
from mmjax.data.headers import image_size
from mmjax.data.inputs import ImageInput, Input, LabelInput, TextInput, VectorInput
from mmjax.data.patches_input import PatchesInput
from mmjax.data.sources.base import Recording
from mmjax.types import Image, Label, Patches, Spectrogram, Text, Vector, Waveform
from tests.data.examples import damaged, samples

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(size=16, left=RED, right=BLUE) -> np.ndarray:
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:, : size // 2], pixels[:, size // 2 :] = left, right
    return pixels


def encode(pixels: np.ndarray, kind: str) -> bytes:
    code = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == 3 and pixels.shape[2] > 1:
        pixels = cv2.cvtColor(pixels, code[pixels.shape[2]])
    return cv2.imencode(kind, pixels)[1].tobytes()


def test_the_table_has_every_input():
    assert set(TABLE.values()) == {*Input.__subclasses__(), *AudioInput.__subclasses__()} - {AudioInput}


def test_pictures_are_rgb_in_unit_range():
    read = ImageInput(size=16).read
    for raw in (picture(), encode(picture(), ".png")):
        values, mask = read(raw, None)
        assert mask is None
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, picture() / 255.0, atol=1e-6)
    sides = [*range(6), *range(10, 16)]  # a JPEG blurs the colours of the edge between
    found = read(encode(picture(), ".jpg"), None)[0]
    np.testing.assert_allclose(found[:, sides], picture()[:, sides] / 255.0, atol=0.05)


@pytest.mark.parametrize(("side", "size", "decoded"), [(256, 64, 64), (250, 64, 125), (100, 64, 100), (520, 64, 65)])
def test_a_jpeg_is_decoded_no_larger_than_need_be(side, size, decoded):
    """And looks as if it had been, up to what its coding loses anyway."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    large = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    raw = encode(large, ".jpg")
    assert decode_image(raw, 3, size).shape == (decoded, decoded, 3)
    assert decode_image(raw, 3).shape == (side, side, 3)
    assert decode_image(encode(large, ".png"), 3, size).shape == (side, side, 3)
    expected = cv2.resize(decode_image(raw, 3), (size, size), interpolation=cv2.INTER_AREA) / 255
    np.testing.assert_allclose(ImageInput(size=size).read(raw, None)[0], expected, atol=0.02)


def test_grey_and_colour():
    grey, _ = ImageInput(size=16, channels=1).read(picture(), None)
    assert grey.shape == (16, 16, 1)
    np.testing.assert_allclose(grey[0, [0, -1], 0], [0.299, 0.114], atol=2e-3)  # luma of red and blue, ITU-R BT.601
    flat = np.full((16, 16), 51, np.uint8)
    for raw in (flat, flat[:, :, None], encode(flat, ".png")):
        np.testing.assert_allclose(ImageInput(size=16).read(raw, None)[0], np.full((16, 16, 3), 0.2), atol=1e-6)


def test_transparency_is_laid_on_white():
    pixels = np.dstack([picture(), np.full((16, 16), 255, np.uint8)])
    pixels[8:, :, 3] = 0
    pixels[:, -1, 3] = 51
    values, _ = ImageInput(size=16).read(encode(pixels, ".png"), None)
    np.testing.assert_allclose(values[0, 0], (1, 0, 0), atol=1e-6)
    np.testing.assert_allclose(values[-1, 0], (1, 1, 1), atol=1e-6)
    np.testing.assert_allclose(values[0, -1], (0.8, 0.8, 1), atol=1e-2)


def test_sixteen_bits():
    values, _ = ImageInput(size=4, channels=1).read(encode(np.full((4, 4), 0x8000, np.uint16), ".png"), None)
    np.testing.assert_allclose(values, 128 / 255, atol=1e-6)


def test_shrinking_averages_and_growing_interpolates():
    dots = np.zeros((32, 32), np.uint8)
    dots[::4, ::4] = 240  # one pixel of the 16 that become one, and not in their middle
    small, _ = ImageInput(size=8, channels=1).read(dots, None)
    np.testing.assert_allclose(small, 240 / 16 / 255, atol=5e-3)
    large, _ = ImageInput(size=40, channels=3).read(picture(), None)
    assert large.shape == (40, 40, 3)
    np.testing.assert_allclose(large.mean((0, 1)), (0.5, 0, 0.5), atol=1e-2)


@damaged(
    (b"", "the image is empty"),
    (b"this is no picture", "not an image"),
    (encode(picture(), ".png")[:-30], "PNG ends early"),
    (encode(picture(), ".jpg")[:-30], "JPEG ends early"),
    (b"\x89PNG\r\n\x1a\n" + bytes(40) + b"IEND\xaeB`\x82", "not an image"),
    ("picture.png", "not str"),
    (np.zeros((4, 4), np.float32), "float32"),
    (np.zeros((0, 4, 3), np.uint8), "shape"),
    (np.zeros((4, 4, 2), np.uint8), "shape"),
)
def test_bad_pictures(raw, reason):
    with pytest.raises(BadInput, match=reason):
        ImageInput(size=8).read(raw, None)


def huge_png(width: int, height: int) -> bytes:
    """A header and an end, and no pixels between."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BMP = b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 60000, -17000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(46)


@damaged(
    (b"P5 60000 60000 255\n", "60000 x 60000 pixels, more than max_pixels=67108864"),
    (huge_png(40_000, 40_000), "40000 x 40000"),
    (huge_png(30_000, 30_000), "30000 x 30000"),
    (BMP, "60000 x 17000"),
    (b"P5 1 60000 255\n", "not an image"),
    (encode(picture(), ".png")[:33] + b"\xff" + encode(picture(), ".png")[34:], "not an image"),
    (b"P5 9999999999 1 255\n", "not an image"),
)
def test_pictures_that_announce_too_much_are_not_decoded(raw, reason):
    with pytest.raises(BadInput, match=reason):
        ImageInput(size=8).read(raw, None)


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".ppm", ".gif", ".webp", ".tiff"])
def test_the_largest_picture_is_a_setting(kind):
    raw = encode(np.concatenate([picture(32), picture(32)], 1), kind)
    assert image_size(raw) == (64, 32)
    assert ImageInput(size=8, max_pixels=64 * 32).read(raw, None)[0].shape == (8, 8, 3)
    with pytest.raises(BadInput, match="64 x 32 pixels, more than max_pixels=2047"):
        ImageInput(size=8, max_pixels=64 * 32 - 1).read(raw, None)


def test_a_lossless_webp_tells_its_size_too():
    lossless = cv2.imencode(".webp", picture(24), [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    assert image_size(lossless) == (24, 24)
    transparent = cv2.imencode(".webp", np.full((30, 20, 4), 100, np.uint8))[1].tobytes()
    assert image_size(transparent) == (20, 30)


def test_sentences():
    sentence = TextInput(length=8)
    values, mask = sentence.read("  Hi é ", None)
    assert values.tolist() == [72 + 2, 105 + 2, 32 + 2, 0xC3 + 2, 0xA9 + 2, 1, 0, 0]
    assert mask.tolist() == [True] * 6 + [False] * 2
    assert sentence.decode(values) == "Hi é"
    values, mask = sentence.read("a long sentence", None)
    assert values[-1] == 1
    assert mask.all()
    assert sentence.decode(values) == "a long "
    assert np.array_equal(sentence.read(b"bytes", None)[0], sentence.read("bytes", None)[0])


@damaged(("", "empty"), (" \n", "empty"), (b"\xff\xfe", "Unicode"), ("\ud800", "Unicode"), (7, "not int"))
def test_bad_texts(raw, reason):
    with pytest.raises(BadInput, match=reason):
        TextInput(length=8).read(raw, None)


def test_labels():
    one = LabelInput(names=("a", "b", "c"))
    for raw in (2, np.int64(2), [2], np.array([2])):
        values, mask = one.read(raw, None)
        assert (values.tolist(), mask.tolist()) == ([2], [True])
    values, mask = LabelInput(names=("a", "b", "c"), slots=3).read([1, 0], None)
    assert (values.tolist(), mask.tolist()) == ([1, 0, 0], [True, True, False])


def test_labels_by_name():
    names = ("zero", "one", "two")
    for raw in ("two", b"two", np.str_("two"), np.bytes_(b"two"), ["two"], np.array(["two"])):
        values, mask = LabelInput(names=names).read(raw, None)
        assert (values.tolist(), mask.tolist()) == ([2], [True])
    assert LabelInput(names=names, slots=3).read(["two", "one"], None)[0].tolist() == [2, 1, 0]
    with pytest.raises(BadInput, match="label 'tow' is not one of the 3 names, such as two"):
        LabelInput(names=names).read("tow", None)


@damaged(
    (3, "label 3 is out of range"),
    (-1, "label -1"),
    ([0, 1, 2], "3 labels"),
    ([], "integers|labels"),
    (1.0, "integers"),
    ([[0], [0, 1]], "integers"),
    ("A", "label 'A' is not one of the 3 names, such as a, b, c"),
    (b"\xff", "is not one of the 3 names"),
    ("a" * 20_000, "label 'a{50}' is not one"),
)
def test_bad_labels(raw, reason):
    with pytest.raises(BadInput, match=reason):
        LabelInput(names=("a", "b", "c"), slots=2).read(raw, None)


def test_quantities():
    values, mask = VectorInput(size=2, slots=3).read([[1, 2], [3, 4]], None)
    assert values.tolist() == [[1, 2], [3, 4], [0, 0]]
    assert mask.tolist() == [True, True, False]
    assert VectorInput(size=2).read(np.array([5.0, 6.0]), None)[0].tolist() == [[5, 6]]


@damaged(
    ([[1.0, np.nan]], "not finite"),
    ([[np.inf, 1.0]], "not finite"),
    ([[1.0]], "shape"),
    ([[1.0, 2.0]] * 4, "shape"),
    ("x", "numbers"),
    ([10**400, 1], "numbers"),
)
def test_bad_quantities(raw, reason):
    with pytest.raises(BadInput, match=reason):
        VectorInput(size=2, slots=3).read(raw, None)


def test_features_tell_the_shapes():
    speech = SpectrogramInput(rate=16000, seconds=1.234, hop=0.02, window=0.04, bands=32)
    cases = [
        (ImageInput(size=8), picture(), Image(8, 8, 3)),
        (PatchesInput(side=4, length=10, channels=1), picture(), Patches(10, 4, 1)),
        (TextInput(length=5), "hello", Text(5, 258)),
        (speech, Recording(samples(), 8000), Spectrogram(62, 32, 0.02)),
        (WaveformInput(rate=4000, seconds=0.1), Recording(samples(), 8000), Waveform(400, 4000)),
        (LabelInput(names=("a", "b"), slots=2), 1, Label(("a", "b"), 2)),
        (VectorInput(size=3, slots=2), [1, 2, 3], Vector(3, 2)),
    ]
    for node, raw, feature in cases:
        assert node.feature == feature
        values, mask = node.read(raw, None)
        shapes = {
            Image: (8, 8, 3),
            Patches: (10, 18),
            Text: (5,),
            Spectrogram: (62, 32),
            Waveform: (400,),
            Label: (2,),
            Vector: (2, 3),
        }
        shape = shapes[type(feature)]
        assert values.shape == shape
        assert mask is None or (mask.shape == shape[:1] and mask.dtype == bool)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageInput(size=0),
        lambda: ImageInput(size=8, channels=2),
        lambda: ImageInput(size=8, max_pixels=0),
        lambda: SpectrogramInput(max_samples=0),
        lambda: TextInput(length=1),
        lambda: SpectrogramInput(bands=400),
        lambda: SpectrogramInput(bands=2**31 - 1, rate=768_000),
        lambda: SpectrogramInput(rate=2**31 - 1),
        lambda: SpectrogramInput(seconds=1e9),
        lambda: SpectrogramInput(window=1e9),
        lambda: WaveformInput(rate=2**31 - 1),
        lambda: SpectrogramInput(high=5000.0),
        lambda: SpectrogramInput(hop=0.0),
        lambda: WaveformInput(seconds=0.0),
        lambda: LabelInput(names=()),
        lambda: LabelInput(names=("a", "b", "a")),
        lambda: VectorInput(size=0),
    ],
)
def test_settings_that_make_no_sense(make):
    with pytest.raises(ValueError, match="must"):
        make()
