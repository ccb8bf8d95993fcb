"""The input of pictures in their own aspect ratio, as a sequence of square patches."""

import contextlib
from collections.abc import Mapping
from typing import Any

import chz
import numpy as np
from jaxtyping import Float

from mmjax.data import clean
from mmjax.data.augment import ImageAugment
from mmjax.data.inputs import Input, resize
from mmjax.fields import OPERATIONAL
from mmjax.types import Patches


@chz.chz
class PatchesInput(Input):
    """A picture in its own aspect ratio as at most `length` patches Float[N P].

    As in NaViT (Dehghani et al. 2023). It is resized to whole patches: to the size nearest to its own, or, where that
    is more than `length` patches, to the largest of its aspect ratio that is not.
    """

    side: int = chz.field(default=16, doc="height and width of a patch, pixels")
    length: int = chz.field(default=256, doc="most patches of a picture; a larger one is shrunk")
    channels: int = chz.field(default=3, doc="1 is grey, 3 is RGB")
    largest: int | None = chz.field(
        default=None, doc="longest side of a picture, pixels; a larger one is shrunk; None: as large as it is"
    )
    augment: ImageAugment = chz.field(default=ImageAugment(), doc="random changes in training")
    max_pixels: int = chz.field(
        default=clean.MAX_PIXELS, doc="a larger image is bad input and not decoded", metadata=OPERATIONAL
    )

    @chz.validate
    def _valid(self) -> None:
        for name in ("side", "length", "largest", "max_pixels"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more")
        if self.channels not in (1, 3):
            raise ValueError("channels must be 1 or 3")

    @property
    def feature(self) -> Patches:
        return Patches(self.length, self.side, self.channels)

    @property
    def is_random(self) -> bool:
        return self.augment.active

    def read(self, raw: Any, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        height, width = clean.image_shape(raw, self.max_pixels)
        rows, columns = self._grid(height, width)
        with clean.bad_input_on_error("the picture cannot be resized"):
            pixels = clean.decode_image(raw, self.channels, self.side * max(rows, columns), self.max_pixels)
            if (pixels.shape[0] - pixels.shape[1]) * (height - width) < 0:  # turned as its camera was held
                rows, columns = columns, rows
            picture = resize(pixels, rows * self.side, columns * self.side)
        if rng is not None:
            picture = self.augment(picture, rng)
        patches = picture.reshape(rows, self.side, columns, self.side, self.channels).swapaxes(1, 2)
        values, count = np.zeros(self.feature.shape, np.float32), rows * columns
        values[:count, :-2] = patches.reshape(count, -1)
        y, x = np.indices((rows, columns)).reshape(2, count)
        values[:count, -2:] = np.stack([(y + 0.5) / rows, (x + 0.5) / columns], 1)
        return values, np.arange(self.length) < count

    def count_positions(self, raw: Any) -> int:
        with contextlib.suppress(clean.BadInput):
            rows, columns = self._grid(*clean.image_shape(raw, self.max_pixels))
            return rows * columns
        return 0

    def to_raw(self, row: Mapping[str, np.ndarray]) -> np.ndarray:
        """The picture uint8[H W C] that the patches make; white where one is missing."""
        return (self._picture(row["values"][row["mask"]]) * 255).round().astype(np.uint8)

    def _picture(self, patches: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "H W C"]:
        # The first centre is half a patch from the top and from the left.
        rows, columns = (max(1, round(0.5 / share)) for share in patches[0, -2:].tolist())
        picture = np.ones((rows, columns, self.side, self.side, self.channels), np.float32)
        y, x = (patches[:, -2:] * (rows, columns)).astype(int).T
        picture[y, x] = patches[:, :-2].reshape(-1, self.side, self.side, self.channels)
        return picture.swapaxes(1, 2).reshape(rows * self.side, columns * self.side, self.channels)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of patches of a picture of this size. Only integers decide."""
        longest = max(height, width)
        scale = longest if self.largest is None else min(longest, self.largest)
        rows, columns = (_nearest(each * scale, longest * self.side) for each in (height, width))
        along = min(max(rows, columns), self.length)
        while rows * columns > self.length:
            rows, columns = (_nearest(each * along, longest) for each in (height, width))
            along -= 1
        return rows, columns


def _nearest(dividend: int, divisor: int) -> int:
    """The whole number nearest to a quotient, at least 1."""
    return max(1, (2 * dividend + divisor) // (2 * divisor))
