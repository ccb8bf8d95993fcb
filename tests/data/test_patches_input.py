"""Pictures in their own aspect ratio as patches: the grid, pixels and places, and back."""

import json
import zipfile

import chz
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.augment import ImageAugment
from mmjax.data.batching.host_batch import empty_batch, set_example
from mmjax.data.clean import BadInput, decode_image
from mmjax.data.inputs import ImageInput
from mmjax.data.patches_input import PatchesInput
from mmjax.reports.gallery import show_given
from mmjax.types import Patches
from tests.data.test_inputs import BMP, encode, huge_png, picture

SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8), (80, 48))
assert SMOOTH.shape == (48, 80, 3)


def grid(values: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """Rows and columns, from the places of the patches, which are checked to be in order."""
    assert mask[: mask.sum()].all()
    places = values[mask][:, -2:]
    rows, columns = (len({*places[:, axis].tolist()}) for axis in range(2))
    y, x = np.divmod(np.arange(rows * columns), columns)
    np.testing.assert_allclose(places, np.stack([(y + 0.5) / rows, (x + 0.5) / columns], 1), rtol=1e-6)
    assert not values[~mask].any()
    return rows, columns


@pytest.mark.parametrize(
    ("height", "width", "settings", "expected"),
    [
        (48, 80, {}, (3, 5)),
        (55, 88, {}, (3, 6)),  # to the nearest, halves up
        (7, 200, {}, (1, 13)),
        (1, 1, {}, (1, 1)),
        (400, 400, {}, (16, 16)),
        (800, 400, {}, (22, 11)),
        (400, 800, {}, (11, 22)),
        (10, 10_000, {}, (1, 256)),
        (400, 800, {"length": 1}, (1, 1)),
        (400, 800, {"length": 2}, (1, 2)),
        (400, 800, {"largest": 160}, (5, 10)),
        (800, 400, {"largest": 160}, (10, 5)),
        (40, 80, {"largest": 160}, (3, 5)),
        (400, 800, {"side": 200}, (2, 4)),
    ],
)
def test_the_grid_keeps_the_aspect_ratio(height, width, settings, expected):
    input = PatchesInput(**settings)
    raw = np.full((height, width, 3), 51, np.uint8)
    values, mask = input.read(raw, None)
    assert grid(values, mask) == expected
    assert input.count_positions(raw) == mask.sum()
    np.testing.assert_allclose(values[mask][:, :-2], 0.2, atol=1e-6)


@pytest.mark.parametrize("seed", range(100))
def test_any_picture_has_as_many_patches_as_are_counted(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(each) for each in np.exp(rng.uniform(0, 6, 2)).astype(int))
    largest = int(rng.integers(1, 300)) if seed % 2 else None
    input = PatchesInput(side=int(rng.integers(1, 20)), length=int(rng.integers(1, 200)), largest=largest)
    raw = rng.integers(0, 256, (height, width, 3), np.uint8)
    values, mask = input.read(raw, None)
    rows, columns = grid(values, mask)
    assert rows * columns == mask.sum() == input.count_positions(raw) == input.count_positions(encode(raw, ".png"))
    if min(rows, columns) > 4:
        assert abs(np.log(rows / columns * width / height)) < 0.2
    # No longer side would do.
    size = min(largest or 10**9, max(height, width)) / max(height, width)
    more = [max(1, round(each * (max(rows, columns) + 1) / max(height, width))) for each in (height, width)]
    whole = max(height, width) * size / input.side
    assert max(rows, columns) >= int(whole) or more[0] * more[1] > input.length


def test_patches_hold_their_pixels_row_by_row():
    input = PatchesInput(side=16)
    values, mask = input.read(SMOOTH, None)
    np.testing.assert_allclose(values[7, :-2].reshape(16, 16, 3), SMOOTH[16:32, 32:48] / 255, atol=1e-6)
    assert values[7, -2:].tolist() == pytest.approx([0.5, 0.5])
    assert values[0, -2:].tolist() == pytest.approx([1 / 6, 0.1])
    np.testing.assert_array_equal(input.to_raw({"values": values, "mask": mask}), SMOOTH)


def test_reports_show_the_picture():
    inputs = {"image": PatchesInput(side=16)}
    batch = empty_batch({name: input.feature for name, input in inputs.items()}, 1)
    set_example(batch, 0, "image", *inputs["image"].read(SMOOTH, None))
    piece = show_given(inputs, batch)["image"]
    assert piece.suffix == ".png"
    np.testing.assert_array_equal(decode_image(piece.content, 3), SMOOTH)


def test_a_patch_that_is_missing_is_white():
    input = PatchesInput(side=16)
    values, mask = input.read(SMOOTH, None)
    mask[8:] = False
    found = input.to_raw({"values": values, "mask": mask})
    assert found.shape == SMOOTH.shape
    np.testing.assert_array_equal(found[:16], SMOOTH[:16])
    assert (found[32:] == 255).all()


def test_grey():
    values, mask = PatchesInput(side=8, channels=1).read(SMOOTH, None)
    grey = ImageInput(size=48, width=80, channels=1).read(SMOOTH, None)[0]
    np.testing.assert_allclose(values[mask][11, :-2].reshape(8, 8), grey[8:16, 8:16, 0], atol=1e-6)


def test_a_large_jpeg_is_decoded_at_reduced_size():
    large = cv2.resize(SMOOTH, (1600, 960), interpolation=cv2.INTER_CUBIC)
    input = PatchesInput(side=16, largest=80)
    values, mask = input.read(encode(large, ".jpg"), None)
    exact, _ = input.read(large, None)
    assert mask.sum() == 15
    assert 0 < abs(values - exact).max() < 0.05


def test_a_photograph_is_turned_as_its_camera_was_held():
    jpeg = encode(SMOOTH, ".jpg")
    exif = bytes.fromhex("ffe1002245786966000049492a0008000000010012010300010000000600000000000000")
    turned = jpeg[:2] + exif + jpeg[2:]
    input = PatchesInput(side=16)
    values, mask = input.read(turned, None)
    assert grid(values, mask) == (5, 3)
    assert input.count_positions(turned) == 15
    found = input.to_raw({"values": values, "mask": mask})
    np.testing.assert_allclose(found, np.rot90(SMOOTH, -1), atol=30)


def test_augmentation_keeps_the_grid():
    input = PatchesInput(side=16, augment=ImageAugment(flip=1.0))
    assert input.is_random
    assert not PatchesInput().is_random
    values, mask = input.read(SMOOTH, np.random.default_rng(0))
    np.testing.assert_allclose(input.to_raw({"values": values, "mask": mask}), SMOOTH[:, ::-1], atol=1)
    wild = chz.replace(input, augment=ImageAugment(flip=0.5, crop=0.3, rotate=90, scale=1.0))
    for seed in range(5):
        values, mask = wild.read(SMOOTH, np.random.default_rng(seed))
        assert grid(values, mask) == (3, 5)
        assert mask.sum() == wild.count_positions(SMOOTH)


def test_real_pictures(shared_data):
    """Emoji are squares; cut to oblongs, all that is counted from headers is there."""
    lines = (shared_data / "noto_emoji" / "emoji.jsonl").read_text().splitlines()
    input = PatchesInput(side=8, length=60)
    with zipfile.ZipFile(shared_data / "noto_emoji" / "noto_emoji_png72.zip") as archive:
        for number, line in enumerate(lines[::300]):
            raw = archive.read(json.loads(line)["file"])
            values, mask = input.read(raw, None)
            assert grid(values, mask) == (7, 7)
            pixels = ImageInput(size=72).read(raw, None)[0][: 16 + 8 * (number % 6)]
            part = encode((pixels * 255).round().astype(np.uint8), ".png")
            values, mask = input.read(part, None)
            assert mask.sum() == input.count_positions(part)


BAD = [
    (b"", "0 bytes are not an image"),
    (b"this is no picture", "not an image"),
    (encode(picture(), ".png")[:-30], "PNG ends early|not an image"),
    (encode(picture(), ".jpg")[:-30], "JPEG ends early"),
    (b"P5 60000 60000 255\n", "60000 x 60000 pixels, more than max_pixels=67108864"),
    (huge_png(40_000, 40_000), "40000 x 40000"),
    (BMP, "60000 x 17000"),
    ("picture.png", "not str"),
    (np.zeros((4, 4), np.float32), "float32"),
    (np.zeros((0, 4, 3), np.uint8), "shape"),
    (np.zeros((4, 4, 2), np.uint8), "shape"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_pictures(raw, reason):
    with pytest.raises(BadInput, match=reason):
        PatchesInput().read(raw, None)
    PatchesInput().count_positions(raw)  # raises nothing


def test_what_has_no_size_has_no_patches():
    assert [PatchesInput().count_positions(raw) for raw in (b"", "picture.png", None, BMP)] == [0] * 4


def test_noise_stays_off_the_places():
    feature = Patches(4, 2, 3)
    x = np.random.default_rng(0).random((4, 14)).astype(np.float32)
    real = np.broadcast_to(np.arange(4)[:, None] < 3, x.shape)
    noisy = np.asarray(feature.add_noise(jnp.asarray(x), jnp.asarray(real), 0.5, jax.random.key(0)))
    np.testing.assert_array_equal(noisy[:, -2:], x[:, -2:])
    np.testing.assert_array_equal(noisy[3], x[3])
    assert (noisy[:3, :-2] != x[:3, :-2]).all()


def test_the_baseline_is_the_mean_colour_in_place():
    feature = Patches(3, 2, 3)
    x = np.random.default_rng(0).random((2, 3, 14)).astype(np.float32)
    real = np.array([[True, True, False], [True, True, True]])[..., None]
    found = np.asarray(feature.baseline(jnp.asarray(x), jnp.asarray(real)))
    np.testing.assert_array_equal(found[..., -2:], x[..., -2:])
    for example, count in ((0, 2), (1, 3)):
        colour = x[example, :count, :-2].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(found[example, :, :-2].reshape(-1, 3), np.tile(colour, (12, 1)), rtol=1e-5)


@pytest.mark.parametrize("settings", [{"side": 0}, {"length": 0}, {"channels": 2}, {"largest": 0}, {"max_pixels": 0}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match="must"):
        PatchesInput(**settings)
