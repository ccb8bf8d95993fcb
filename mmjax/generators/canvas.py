"""Images and spectrograms as grids for convolutions, and back."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.errors import UserError
from mmjax.layers.output import find_feature
from mmjax.types import Batch, Feature, Image, Spectrogram


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The grid of a feature: an image's pixels in [-1, 1], or a spectrogram's frames by bands.

    A spectrogram has one channel. Both sides are padded with zeros to multiples of `unit`.
    """

    target: str
    feature: Image | Spectrogram
    unit: int

    @property
    def valid_shape(self) -> tuple[int, int]:
        """Rows and columns without padding."""
        feature = self.feature
        if isinstance(feature, Image):
            return feature.height, feature.width
        return feature.frames, feature.bands

    @property
    def channels(self) -> int:
        """Channels of the grid."""
        return self.feature.channels if isinstance(self.feature, Image) else 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the padded grid."""
        rows, columns = (-(-side // self.unit) * self.unit for side in self.valid_shape)
        return rows, columns

    def from_batch(self, batch: Batch) -> Float[Array, "B H W C"]:
        """The feature's values on the grid; zero where it is absent or a frame is masked."""
        values, weights = batch.values[self.target].astype(jnp.float32), self.weights(batch)
        x = 2 * values - 1 if isinstance(self.feature, Image) else values[..., None]
        (rows, columns), (height, width) = self.valid_shape, self.shape
        # What is absent may hold anything, and NaN times zero is NaN.
        x = jnp.where(weights[..., None, None] > 0, x, 0)
        return jnp.pad(x, ((0, 0), (0, height - rows), (0, width - columns), (0, 0)))

    def mask(self, x: Float[Array, "B H W C"], batch: Batch) -> Float[Array, "B H W C"]:
        """A generated grid with zeros wherever the batch's grid is padded or masked.

        So a critic cannot recognise generated grids by their padding.
        """
        (rows, columns), (height, width) = self.valid_shape, self.shape
        real = jnp.pad(self.weights(batch), ((0, 0), (0, height - rows)))[..., None, None]
        return jnp.where((real > 0) & (jnp.arange(width) < columns)[:, None], x, 0)

    def squared_error(self, a: Float[Array, "B H W C"], b: Float[Array, "B H W C"], batch: Batch) -> Float[Array, "B"]:
        """The sum of squared differences over the unmasked part of each example."""
        return jnp.einsum("btmc,bt->b", jnp.square(self.crop(a - b)), self.weights(batch))

    def weights(self, batch: Batch) -> Float[Array, "B T"]:
        """1 for each real row of an example that has the feature, otherwise 0."""
        present = batch.present[self.target][:, None]
        if self.target in batch.mask:
            present = present & batch.mask[self.target]
        return jnp.broadcast_to(present.astype(jnp.float32), (present.shape[0], self.valid_shape[0]))

    def size(self, batch: Batch) -> Float[Array, "B"]:
        """How many real numbers each example has."""
        return self.weights(batch).sum(1) * self.valid_shape[1] * self.channels

    def crop(self, x: Float[Array, "B H W C"]) -> Float[Array, "B T M C"]:
        """The grid without its padding."""
        rows, columns = self.valid_shape
        return x[:, :rows, :columns]

    def values(self, x: Float[Array, "B H W C"]) -> Float[Array, "B ..."]:
        """The grid as values of the feature."""
        x = self.crop(x).astype(jnp.float32)
        return jnp.clip((x + 1) / 2, 0, 1) if isinstance(self.feature, Image) else x[..., 0]


def make_canvas(name: str, target: str, widths: tuple[int, ...], features: dict[str, Feature]) -> Canvas:
    """The grid of a feature whose sides are halved once per entry of `widths`.

    `name` is the output's class, for messages. Raises UserError where there is no such image or spectrogram, or no
    width.
    """
    if not widths or min(widths) < 1:
        raise UserError(f"{name}.widths={widths} needs a positive number of channels for each halving of the sides")
    feature = find_feature(f"{name}.target", target, features, Image, Spectrogram)
    assert isinstance(feature, Image | Spectrogram)
    return Canvas(target, feature, 2 ** len(widths))
