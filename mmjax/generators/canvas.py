"""Pictures and spectra as grids that convolutions work on, and back."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.errors import UserError
from mmjax.layers.output import find_feature
from mmjax.types import Batch, Feature, Image, Spectrogram


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The grid of a feature: a picture's pixels in [-1, 1], or a spectrum's frames by bands in one channel.

    Both sides are filled up, with zeros, to multiples of `unit`.
    """

    target: str
    feature: Image | Spectrogram
    unit: int

    @property
    def real(self) -> tuple[int, int]:
        """Rows and columns that mean something."""
        feature = self.feature
        if isinstance(feature, Image):
            return feature.height, feature.width
        return feature.frames, feature.bands

    @property
    def channels(self) -> int:
        """Numbers a place."""
        return self.feature.channels if isinstance(self.feature, Image) else 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        rows, columns = (-(-side // self.unit) * self.unit for side in self.real)
        return rows, columns

    def from_batch(self, batch: Batch) -> Float[Array, "B H W C"]:
        """The feature's values on the grid; zero where the feature is absent or a frame is not real."""
        values, weights = batch.values[self.target].astype(jnp.float32), self.weights(batch)
        x = 2 * values - 1 if isinstance(self.feature, Image) else values[..., None]
        (rows, columns), (height, width) = self.real, self.shape
        # What is absent may hold anything, and NaN times zero is NaN.
        x = jnp.where(weights[..., None, None] > 0, x, 0)
        return jnp.pad(x, ((0, 0), (0, height - rows), (0, width - columns), (0, 0)))

    def mask(self, x: Float[Array, "B H W C"], batch: Batch) -> Float[Array, "B H W C"]:
        """A grid that was made, with zeros where that of the batch has them, so that a critic cannot tell by these."""
        (rows, columns), (height, width) = self.real, self.shape
        real = jnp.pad(self.weights(batch), ((0, 0), (0, height - rows)))[..., None, None]
        return jnp.where((real > 0) & (jnp.arange(width) < columns)[:, None], x, 0)

    def squared_error(self, a: Float[Array, "B H W C"], b: Float[Array, "B H W C"], batch: Batch) -> Float[Array, "B"]:
        """The sum of squared differences over what is there of each example."""
        return jnp.einsum("btmc,bt->b", jnp.square(self.crop(a - b)), self.weights(batch))

    def weights(self, batch: Batch) -> Float[Array, "B T"]:
        """1 for each real row of an example that has the feature, else 0."""
        there = batch.present[self.target][:, None]
        if self.target in batch.mask:
            there = there & batch.mask[self.target]
        return jnp.broadcast_to(there.astype(jnp.float32), (there.shape[0], self.real[0]))

    def size(self, batch: Batch) -> Float[Array, "B"]:
        """How many numbers of each example are there."""
        return self.weights(batch).sum(1) * self.real[1] * self.channels

    def crop(self, x: Float[Array, "B H W C"]) -> Float[Array, "B T M C"]:
        """The part of the grid that means something."""
        rows, columns = self.real
        return x[:, :rows, :columns]

    def values(self, x: Float[Array, "B H W C"]) -> Float[Array, "B ..."]:
        """What a grid shows, in the feature's own terms."""
        x = self.crop(x).astype(jnp.float32)
        return jnp.clip((x + 1) / 2, 0, 1) if isinstance(self.feature, Image) else x[..., 0]


def make_canvas(name: str, target: str, widths: tuple[int, ...], features: dict[str, Feature]) -> Canvas:
    """The grid of a feature whose sides each of `widths` halves; `name` is what wants it.

    Raises UserError where there is no such picture or spectrum, or no level at all.
    """
    if not widths or min(widths) < 1:
        raise UserError(f"{name}.widths={widths} needs a positive number of channels for each halving of the sides")
    feature = find_feature(f"{name}.target", target, features, Image, Spectrogram)
    assert isinstance(feature, Image | Spectrogram)
    return Canvas(target, feature, 2 ** len(widths))
