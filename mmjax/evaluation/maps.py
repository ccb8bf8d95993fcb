"""Attribution maps drawn over images, spectrograms and words."""

import numpy as np
from jaxtyping import Float, Int

from mmjax.data.inputs import Input

# As the page colours words: what speaks for an answer, and what against it.
FOR, AGAINST = np.array([194, 80, 12]) / 255, np.array([36, 87, 197]) / 255
# A few values that stand out must not make all others invisible.
STRONGEST = 99  # percentile


def draw_map(grey: Float[np.ndarray, "H W"], map: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """The image in light grey, with FOR's colour where the map is positive and AGAINST's where negative."""
    low, high = grey.min(initial=0), grey.max(initial=0)
    pale = 0.4 + 0.6 * (grey - low) / max(high - low, 1e-6)
    size = abs(map)
    top = np.percentile(size, STRONGEST) or size.max() or 1.0
    cover = np.minimum(size / top, 1)[..., None]
    return pale[..., None] * (1 - cover) + np.where(map[..., None] > 0, FOR, AGAINST) * cover


def words_of(input: Input, ids: Int[np.ndarray, "N"]) -> tuple[list[str], Int[np.ndarray, "N"]]:
    """The words of a text, and for each of its tokens the place of the word that it ends in.

    A token that ends before the first word is the first's.
    """
    texts = [input.to_raw({"ids": ids[: place + 1]}) for place in range(len(ids))]
    counts = [len(text.split()) for text in texts]
    return texts[-1].split(), np.maximum(np.array(counts, np.int32) - 1, 0)


def draw_words(
    input: Input, ids: Int[np.ndarray, "N"], map: Float[np.ndarray, "N"], shared: bool
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
