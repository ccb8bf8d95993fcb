"""The noise of av_digits: images of a few principal components, recordings under babble and noise."""

import dataclasses

import numpy as np

RATE = 8000
LENGTH = 8000
LARGEST_SHIFT = 1000
RMS = 0.1
WHITE_RMS = 0.05
VOICES = 3
DECIBELS = -10.0
COMPONENTS = 4


@dataclasses.dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of images with P pixels.

    The mean float64[P] and the K directions float64[K P] of largest variance.
    """

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, pictures: np.ndarray, count: int = COMPONENTS) -> "PrincipalComponents":
        """The components of uint8[N H W], from the eigenvectors of the pixels' covariance."""
        pixels = pictures.reshape(len(pictures), -1)
        mean = pixels.mean(0, dtype=np.float64)
        covariance = np.zeros((pixels.shape[1],) * 2)
        for start in range(0, len(pixels), 5000):  # in parts, because all pixels in float64 would take 345 MB
            centred = pixels[start : start + 5000] - mean
            covariance += centred.T @ centred
        return cls(mean, np.linalg.eigh(covariance)[1][:, : -count - 1 : -1].T)

    def reduce(self, pictures: np.ndarray) -> np.ndarray:
        """uint8[... H W] -> uint8[... H W]: each image's projection on the components."""
        pixels = pictures.reshape(*pictures.shape[:-2], -1)
        reduced = self.mean + (pixels - self.mean) @ self.directions.T @ self.directions
        return np.clip(np.rint(reduced), 0, 255).astype(np.uint8).reshape(pictures.shape)


def rms(samples: np.ndarray) -> float:
    """Root mean square over all samples."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def normalize_level(samples: np.ndarray) -> np.ndarray:
    """int16[T] -> float32[8000]: scaled to RMS 0.1, then cut or padded with silence."""
    loudness = rms(samples)
    scaled = samples[:LENGTH].astype(np.float32) * (RMS / loudness if loudness else 0.0)
    return np.pad(scaled, (0, LENGTH - len(scaled)))


def mix_noise(speech: np.ndarray, pool: np.ndarray, seed: int) -> np.ndarray:
    """One recording under noise, int16[8000]; all randomness comes from `seed`.

    `speech` float32[8000] and the recordings `pool` float32[R 8000] of the babble come from `normalize_level`. The
    speech is shifted circularly by up to 1,000 samples and attenuated by 10 dB. The noise is white noise at RMS 0.05
    plus three recordings of the pool at random circular offsets, the sum scaled to RMS 0.1, which was the speech's own.
    Where speech and noise together would exceed full scale, both are attenuated.
    """
    rng = np.random.default_rng(seed)
    speech = np.roll(speech, rng.integers(LARGEST_SHIFT + 1))
    noise = WHITE_RMS * rng.standard_normal(LENGTH, np.float32)
    for voice, offset in zip(rng.integers(len(pool), size=VOICES), rng.integers(LENGTH, size=VOICES), strict=True):
        noise += np.roll(pool[voice], offset)
    mixture = np.float32(10 ** (DECIBELS / 20)) * speech + np.float32(RMS / rms(noise)) * noise
    mixture /= max(1.0, np.abs(mixture).max())
    return np.rint(32767 * mixture).astype(np.int16)
