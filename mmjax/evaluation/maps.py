"""Maps of what speaks for an answer, drawn over what they are of."""

import math

import numpy as np
from jaxtyping import Float, Int

from mmjax.data.inputs import TextInput
from mmjax.types import Feature, Image, Spectrogram

# As the page colours words: what speaks for an answer, and what against it.
FOR, AGAINST = np.array([194, 80, 12]) / 255, np.array([36, 87, 197]) / 255
# A few values that stand out must not make all others invisible.
STRONGEST = 99  # percentile


def draw_map(grey: Float[np.ndarray, "H W"], map: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """A picture, or anything like one, in light greys, covered by FOR and AGAINST where the map says something."""
    low, high = grey.min(initial=0), grey.max(initial=0)
    pale = 0.4 + 0.6 * (grey - low) / max(high - low, 1e-6)
    size = abs(map)
    top = np.percentile(size, STRONGEST) or size.max() or 1.0
    cover = np.minimum(size / top, 1)[..., None]
    return pale[..., None] * (1 - cover) + np.where(map[..., None] > 0, FOR, AGAINST) * cover


def spread_tokens(tokens: Float[np.ndarray, "N"], feature: Feature) -> Float[np.ndarray, "..."]:
    """What is said of an encoder's tokens, of the values that they stand for: Float[H W] of a picture, Float[T M]."""
    count = len(tokens)
    match feature:
        case Image(height, width, _):
            # The grid whose places are the most square.
            columns = min(
                (n for n in range(1, count + 1) if count % n == 0),
                key=lambda n: abs(math.log(count / n / n * width / height)),
            )
            grid = tokens.reshape(-1, columns)
            return grid[np.arange(height) * len(grid) // height][:, np.arange(width) * columns // width]
        case Spectrogram(frames, bands, _):
            stride = math.ceil(frames / count)
            return np.repeat(np.repeat(tokens, stride)[:frames, None], bands, 1)
    return tokens


def words_of(input: TextInput, ids: Int[np.ndarray, "N"]) -> tuple[list[str], Int[np.ndarray, "N"]]:
    """The words of a text, and for each of its tokens the place of the one that it ends in; what follows is the last's.

    A token that ends before the first word is the first's.
    """
    counts = [len(input.decode(ids[: place + 1]).split()) for place in range(len(ids))]
    return input.decode(ids).split(), np.maximum(np.array(counts, np.int32) - 1, 0)


def draw_words(
    input: TextInput, ids: Int[np.ndarray, "N"], map: Float[np.ndarray, "N"], shared: bool
) -> list[tuple[str, float]]:
    """The words of a text, each with its weight, scaled so that the largest is 1 or -1.

    That is the sum over its tokens, or, where what they say is `shared` by all tokens of a word, what each says.
    """
    words, places = words_of(input, ids)
    if not words:
        return []
    weights = np.bincount(places, map, len(words)) / (
        np.maximum(np.bincount(places, None, len(words)), 1) if shared else 1
    )
    return list(zip(words, (weights / (abs(weights).max() or 1.0)).tolist(), strict=True))
