"""Fusion by compact bilinear pooling."""

import chz
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.fusion.base import Fusion, Intermediates, PooledFusion
from mmjax.layers.linear import Linear
from mmjax.layers.norm import RMSNorm
from mmjax.layers.settings import Settings


@chz.chz
class Bilinear(Fusion):
    """Multimodal compact bilinear pooling (Gao et al. 2016; Fukui et al. 2016).

    The outer product of [h1; 1], ..., [hM; 1] is projected to `size` numbers without being formed, as the circular
    convolution of count sketches, which is a product of spectra: s = ifft(fft(S1 [h1; 1]) * ... * fft(SM [hM; 1])).
    Then h = W norm(sign(s) sqrt|s|). The hashes and signs of the sketches S are random and fixed. A missing modality
    contributes only the 1.
    """

    size: int = chz.field(default=512, doc="size of the count sketches")

    @chz.validate
    def _positive(self) -> None:
        if self.size < 1:
            raise ValueError("size must be 1 or more")

    def build(self, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs) -> "BilinearFusion":
        return BilinearFusion(self, modalities, settings, rngs)


class BilinearFusion(PooledFusion):
    """See `Bilinear`."""

    def __init__(self, config: Bilinear, modalities: tuple[str, ...], settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.norm = RMSNorm(config.size, rules=rules, rngs=rngs)
        self.project = Linear((config.size, width), (None, "embed"), rules=rules, rngs=rngs)
        self.size, self.modalities = config.size, modalities

    def combine(
        self, means: Float[Array, "B M D"], present: Bool[Array, "B M"], key: jax.Array | None
    ) -> tuple[Float[Array, "B D"], Intermediates]:
        wide = means.astype(jnp.float32)
        one = jnp.ones_like(wide[..., :1])
        spectrum = jnp.ones((), jnp.complex64)
        for index, features in enumerate(jnp.unstack(jnp.concatenate([wide, one], -1), axis=1)):
            spectrum = spectrum * jnp.fft.rfft(features @ count_sketch(index, features.shape[1], self.size))
        product = jnp.fft.irfft(spectrum, self.size)
        rooted = jnp.sign(product) * (jnp.sqrt(jnp.abs(product) + 1e-6) - 1e-3)
        return self.project(self.norm(rooted).astype(means.dtype)), {"product": product}


def count_sketch(index: int, inputs: int, size: int) -> Float[np.ndarray, "C K"]:
    """The count sketch of the index-th modality as a matrix.

    Every input has one random position and a random sign.
    """
    rng = np.random.default_rng([index, inputs, size])
    matrix = np.zeros((inputs, size), np.float32)
    matrix[np.arange(inputs), rng.integers(size, size=inputs)] = rng.choice([-1.0, 1.0], inputs)
    return matrix
