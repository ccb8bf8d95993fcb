"""Augmentations: nothing when off, the same for the same random numbers, and each does what its name says."""

import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.inputs import ImageInput
from mmjax.data.sources.base import Recording


def rng(seed=0):
    return np.random.default_rng(seed)


def dot(row, column, size=33):
    """A black picture with a soft white dot."""
    rows, columns = np.indices((size, size))
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4).astype(np.float32)[:, :, None]


def peak(picture):
    return np.unravel_index(np.argmax(picture[:, :, 0]), picture.shape[:2])


def test_off_is_identity():
    picture = rng().random((9, 7, 3), np.float32)
    assert ImageAugment()(picture, rng()) is picture
    samples = rng().standard_normal(800, np.float32)
    np.testing.assert_array_equal(SpectrogramAugment().samples(samples, 8000, rng()), samples)
    frames = rng().standard_normal((50, 20), np.float32)
    np.testing.assert_array_equal(SpectrogramAugment().spectrum(frames, rng()), frames)


def test_random_numbers_decide():
    picture = ImageInput(size=16, augment=ImageAugment(flip=0.5, crop=0.2, rotate=30, scale=0.3))
    speech = SpectrogramInput(augment=SpectrogramAugment(gain=6, shift=0.1, noise=0.5, time_masks=2, band_masks=2))
    raw = {
        picture: rng(1).integers(0, 255, (16, 16, 3), np.uint8),
        speech: Recording(0.1 * rng(2).standard_normal(4000, np.float32), 8000),
    }
    for node, value in raw.items():
        assert node.is_random
        first, again, other, plain = (node.read(value, source)[0] for source in (rng(3), rng(3), rng(4), None))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 0.05
        assert np.abs(first - plain).max() > 0.05
    assert not ImageInput(size=16).is_random
    assert not SpectrogramInput().is_random


def test_flip():
    picture = rng().random((8, 8, 3), np.float32)
    np.testing.assert_allclose(ImageAugment(flip=1.0)(picture, rng()), picture[:, ::-1], atol=1e-6)
    flipped = [
        np.allclose(ImageAugment(flip=0.25)(picture, rng(seed)), picture[:, ::-1], atol=1e-5) for seed in range(400)
    ]
    assert 0.18 < np.mean(flipped) < 0.32


def test_crop_moves_up_to_its_share():
    moves = np.array([peak(ImageAugment(crop=0.25)(dot(16, 16), rng(seed))) for seed in range(200)]) - 16
    assert moves.min() in (-8, -7)
    assert moves.max() in (7, 8)


def test_rotation_keeps_the_distance_from_the_centre():
    angles = []
    for seed in range(100):
        row, column = np.array(peak(ImageAugment(rotate=90)(dot(16, 26), rng(seed)))) - 16
        assert 9 <= np.hypot(row, column) <= 11
        angles.append(np.degrees(np.arctan2(-row, column)))
    assert -90 <= min(angles) < -75
    assert 75 < max(angles) <= 96


def test_scale_moves_what_is_off_centre():
    columns = [peak(ImageAugment(scale=0.5)(dot(16, 24), rng(seed)))[1] - 16 for seed in range(100)]
    assert 8 / 1.5 - 1 <= min(columns) < 6.5
    assert 11 <= max(columns) <= 12


def test_gain_and_noise():
    samples = rng().standard_normal(8000, np.float32)
    ratios = [
        np.std(SpectrogramAugment(gain=6.0).samples(samples, 8000, rng(seed))) / np.std(samples) for seed in range(100)
    ]
    assert 10 ** (-6 / 20) <= min(ratios) < 0.55
    assert 1.85 < max(ratios) <= 10 ** (6 / 20)
    noisy = [np.std(SpectrogramAugment(noise=0.5).samples(samples, 8000, rng(seed)) - samples) for seed in range(100)]
    assert min(noisy) < 0.05
    assert 0.45 < max(noisy) < 0.52
    softer = [
        np.std(SpectrogramAugment(noise=0.5).samples(samples / 10, 8000, rng(seed)) - samples / 10) for seed in range(9)
    ]
    np.testing.assert_allclose(softer, np.array(noisy[:9]) / 10, rtol=1e-3)


def test_shift():
    samples = np.arange(1, 8001, dtype=np.float32)
    for seed in range(50):
        moved = SpectrogramAugment(shift=0.1).samples(samples, 8000, rng(seed))
        count = moved.size - samples.size
        assert -800 <= count <= 800
        if count >= 0:
            assert not moved[:count].any()
            np.testing.assert_array_equal(moved[count:], samples)
        else:
            np.testing.assert_array_equal(moved, samples[-count:])
    far = [SpectrogramAugment(shift=10.0).samples(samples, 8000, rng(seed)).size for seed in range(20)]
    assert min(far) == 4000  # half of it stays


def test_masks_hide_whole_stretches():
    frames = np.ones((50, 40), np.float32)
    widths = {0: set(), 1: set()}
    reached = {0: np.zeros(50, bool), 1: np.zeros(40, bool)}
    for seed in range(300):
        hidden = (
            SpectrogramAugment(time_masks=1, time_share=0.2, band_masks=1, band_share=0.1).spectrum(frames, rng(seed))
            == 0
        )
        times, bands = hidden.all(1), hidden.all(0)
        np.testing.assert_array_equal(hidden, times[:, None] | bands[None, :])
        for axis, line in ((0, times), (1, bands)):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() <= 2  # one stretch at most
            widths[axis].add(int(line.sum()))
            reached[axis] |= line
    assert widths == {0: set(range(11)), 1: set(range(5))}
    assert reached[0].all()
    assert reached[1].all()
    assert frames.all()


def test_masks_stay_in_the_real_frames():
    values, mask = SpectrogramInput(augment=SpectrogramAugment(time_masks=3, time_share=1.0)).read(
        Recording(rng().standard_normal(4000, np.float32), 8000), rng(1)
    )
    assert mask.sum() == 50
    assert not values[50:].any()


def test_settings_that_make_no_sense():
    for make in (
        lambda: ImageAugment(flip=1.5),
        lambda: ImageAugment(rotate=-3),
        lambda: SpectrogramAugment(time_share=2.0),
    ):
        with pytest.raises(ValueError, match="must lie between"):
            make()
