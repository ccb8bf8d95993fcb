"""Random augmentation of images and recordings. All of it is off (0) by default."""

import chz
import numpy as np
from jaxtyping import Float

from mmjax.data.clean import opencv


def _check(node: object, **limits: int) -> None:
    """Raises ValueError unless 0 <= field <= limit for each."""
    for name, limit in limits.items():
        value = getattr(node, name)
        if not 0 <= value <= limit:
            raise ValueError(f"{name} must lie between 0 and {limit}")


@chz.chz
class ImageAugment:
    """Flip, crop, rotation and scale of an image as one affine map, so that it is interpolated once.

    The border is repeated outside the image.
    """

    flip: float = chz.field(default=0.0, doc="probability of mirroring left and right")
    crop: float = chz.field(
        default=0.0,
        doc="largest shift each way, as a share of the side: random crop of the padded image (He et al. 2016)",
    )
    rotate: float = chz.field(default=0.0, doc="largest angle in either direction, degrees")
    scale: float = chz.field(
        default=0.0,
        doc="largest relative change of size: log-uniform from 1 / (1 + scale) to 1 + scale",
    )

    @chz.validate
    def _limits(self) -> None:
        _check(self, flip=1, crop=1, rotate=180, scale=10)

    @property
    def active(self) -> bool:
        return any((self.flip, self.crop, self.rotate, self.scale))

    def __call__(self, picture: Float[np.ndarray, "H W C"], rng: np.random.Generator) -> Float[np.ndarray, "H W C"]:
        if not self.active:
            return picture
        cv2 = opencv()
        # All are always drawn, so that enabling one does not change the others.
        mirror, across, down, turn, size = rng.uniform(-1, 1, 5)
        height, width, channels = picture.shape
        angle, factor = np.radians(self.rotate * turn), (1 + self.scale) ** size
        matrix = factor * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        if mirror < 2 * self.flip - 1:
            matrix[:, 0] *= -1
        centre = np.array([width - 1, height - 1]) / 2
        shift = self.crop * np.array([across * width, down * height])
        offset = centre + shift - matrix @ centre
        warped = cv2.warpAffine(
            picture, np.column_stack([matrix, offset]), (width, height), borderMode=cv2.BORDER_REPLICATE
        )
        return warped.reshape(height, width, channels)


@chz.chz
class SpectrogramAugment:
    """Gain, shift and noise of the samples; masks on the spectrogram (SpecAugment without warping).

    Park et al. 2019.
    """

    gain: float = chz.field(default=0.0, doc="largest change of loudness in either direction, dB")
    shift: float = chz.field(
        default=0.0, doc="largest shift in either direction, seconds: silence before the recording, or a cut beginning"
    )
    noise: float = chz.field(default=0.0, doc="largest level of white noise, relative to the recording's RMS")
    time_masks: int = chz.field(default=0, doc="number of time masks")
    time_share: float = chz.field(default=0.1, doc="longest time mask, as a share of the recording")
    band_masks: int = chz.field(default=0, doc="number of band masks")
    band_share: float = chz.field(default=0.2, doc="widest band mask, as a share of the bands")

    @chz.validate
    def _limits(self) -> None:
        _check(self, gain=100, shift=3600, noise=1000, time_masks=1000, time_share=1, band_masks=1000, band_share=1)

    @property
    def active(self) -> bool:
        return any((self.gain, self.shift, self.noise, self.time_masks, self.band_masks))

    def samples(self, samples: Float[np.ndarray, "S"], rate: int, rng: np.random.Generator) -> Float[np.ndarray, "R"]:
        """The recording with random gain, shift and noise."""
        decibels, seconds, level = rng.uniform(-1, 1, 3)
        if self.shift:
            count = round(self.shift * seconds * rate)
            # Half of the recording stays whatever is asked for.
            samples = np.pad(samples, (count, 0)) if count > 0 else samples[min(-count, samples.size // 2) :]
        if self.noise:
            deviation = self.noise * abs(level) * np.sqrt(np.mean(samples**2))
            samples = samples + deviation.astype(np.float32) * rng.standard_normal(samples.size, np.float32)
        return samples * np.float32(10 ** (self.gain * decibels / 20))

    def spectrum(self, frames: Float[np.ndarray, "T M"], rng: np.random.Generator) -> Float[np.ndarray, "T M"]:
        """The spectrogram with random stretches set to 0, its mean after normalisation."""
        masks = [(self.time_masks, self.time_share, 0), (self.band_masks, self.band_share, 1)]
        hidden = frames.copy()
        for count, share, axis in masks:
            length = frames.shape[axis]
            for width, start in rng.uniform(size=(count, 2)):
                width = int(width * (share * length + 1))
                first = int(start * (length - width + 1))
                hidden.swapaxes(0, axis)[first : first + width] = 0
        return hidden
