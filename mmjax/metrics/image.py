"""Image similarity: PSNR and SSIM."""

import numpy as np
from jaxtyping import Float

from mmjax.errors import UserError

# Of the mean squared error, where a picture is its truth up to rounding: 100 dB.
LEAST_ERROR = 1e-10
WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, pixels
STABLE_MEAN, STABLE_VARIANCE = 0.01**2, 0.03**2  # SSIM's C1 and C2 for values in [0, 1]
# Pixels worked on at a time: some 40 MiB for each moment.
BLOCK_ELEMENTS = 1 << 22


def psnr(predicted: Float[np.ndarray, "E H W C"], truth: Float[np.ndarray, "E H W C"]) -> Float[np.ndarray, "E"]:
    """The peak signal-to-noise ratio of each image in dB, for values in [0, 1].

    -10 log10(mean squared error), at most 100 dB, the value for equal images.
    """
    errors = np.square(predicted.astype(np.float64) - truth).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(errors, LEAST_ERROR))


def ssim(predicted: Float[np.ndarray, "E H W C"], truth: Float[np.ndarray, "E H W C"]) -> Float[np.ndarray, "E"]:
    """The mean structural similarity of each image, for values in [0, 1] (Wang et al. 2004, eq. 13-17).

        (2 m w + C1) (2 c + C2) / ((m^2 + w^2 + C1) (s^2 + t^2 + C2))    with C1 = 0.01^2 and C2 = 0.03^2

    from means m, w, variances s^2, t^2 and covariance c under a Gaussian window of 11 x 11 pixels and deviation 1.5,
    averaged over all positions where the window lies inside the image, and over the channels. 1 for equal images.

    Raises:
        UserError: the images are smaller than the window.
    """
    height, width, channels = predicted.shape[1:]
    if min(height, width) < WINDOW:
        raise UserError(f"SSIM needs pictures of {WINDOW} x {WINDOW} pixels or more, not {height} x {width}")
    size = max(1, BLOCK_ELEMENTS // (height * width * channels))
    parts = [
        _ssim(predicted[begin : begin + size], truth[begin : begin + size]) for begin in range(0, len(predicted), size)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _ssim(predicted: Float[np.ndarray, "E H W C"], truth: Float[np.ndarray, "E H W C"]) -> Float[np.ndarray, "E"]:
    x, y = predicted.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x) - mean_x**2 + _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + STABLE_MEAN) / (mean_x**2 + mean_y**2 + STABLE_MEAN)
    return (likeness * (2 * covariance + STABLE_VARIANCE) / (variances + STABLE_VARIANCE)).mean((1, 2, 3))


def _smooth(x: Float[np.ndarray, "E H W C"]) -> Float[np.ndarray, "E h w C"]:
    """The weighted mean around every position where the whole window lies inside the image."""
    from scipy.ndimage import correlate1d

    reach = WINDOW // 2
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * DEVIATION**2))
    weights /= weights.sum()
    rows = correlate1d(x, weights, axis=1)[:, reach:-reach]
    return correlate1d(rows, weights, axis=2)[:, :, reach:-reach]
