"""PSNR by hand, and SSIM against its formula written out window by window."""

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.metrics import image
from mmjax.metrics.image import psnr, ssim


def pair(count: int = 3, height: int = 16, width: int = 14, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(count, height, width, channels)).astype(np.float32)
    noise = rng.normal(size=truth.shape) * np.linspace(0.05, 0.4, count)[:, None, None, None]
    return np.clip(truth + noise, 0, 1).astype(np.float32), truth


def test_psnr_by_hand():
    truth = np.zeros((3, 4, 5, 3), np.float32)
    said = truth.copy()
    said[0] += 0.1  # an error of 0.1 everywhere
    said[1, 0, 0, 0] = 1  # of 1 at one of 60 places
    assert psnr(said, truth) == pytest.approx([20, 10 * np.log10(60), 100], rel=1e-6)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel: every 11 x 11 window by itself, its moments weighted by a two-dimensional Gaussian."""
    rows, columns = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            m, w = (weights * a).sum(), (weights * b).sum()
            s, t = (weights * (a - m) ** 2).sum(), (weights * (b - w) ** 2).sum()
            c = (weights * (a - m) * (b - w)).sum()
            luminance = (2 * m * w + 1e-4) / (m**2 + w**2 + 1e-4)
            values.append(luminance * (2 * c + 9e-4) / (s + t + 9e-4))
    return float(np.mean(values))


@pytest.mark.parametrize("block_elements", [1 << 22, 1])
def test_ssim_is_the_formula_window_by_window(block_elements, monkeypatch):
    monkeypatch.setattr(image, "BLOCK_ELEMENTS", block_elements)
    said, truth = pair()
    slow = [
        np.mean([slow_ssim(said[e, ..., c].astype(float), truth[e, ..., c].astype(float)) for c in range(3)])
        for e in range(len(said))
    ]
    found = ssim(said, truth)
    assert found == pytest.approx(slow, abs=1e-9)
    assert 1 > found[0] > found[1] > found[2] > 0


def test_ssim_of_flat_pictures_by_hand():
    grey = np.full((1, 11, 11, 1), 0.5, np.float32)
    lighter = np.full((1, 11, 11, 1), 0.75, np.float32)
    assert ssim(grey, grey) == pytest.approx([1])
    assert ssim(grey, lighter) == pytest.approx([(2 * 0.375 + 1e-4) / (0.25 + 0.5625 + 1e-4)])
    _, truth = pair()
    assert ssim(truth, truth) == pytest.approx([1, 1, 1])
    assert (ssim(1 - truth, truth) < 0).all()


def test_no_pictures_and_small_ones():
    none = np.zeros((0, 16, 16, 3), np.float32)
    assert ssim(none, none).shape == psnr(none, none).shape == (0,)
    small = np.zeros((2, 10, 16, 3), np.float32)
    with pytest.raises(UserError, match=r"^SSIM needs pictures of 11 x 11 pixels or more, not 10 x 16$"):
        ssim(small, small)
