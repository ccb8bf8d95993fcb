"""Attribution: how much every value, window and modality adds to the probability of an answer.

Every attribution is a pure function of a score, that of every example of a batch. Here it is `log_probability`, of what
an output itself predicts, in nats; attributions that are positive speak for the answer. A model that computes in
bfloat16 is better explained in float32, in which its parameters are: differences of scores are small.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmjax.metrics.contributions import shapley
from mmjax.model import Multimodal
from mmjax.types import Batch, Feature

# The score Float[B] of every example of a batch.
Score = Callable[[Batch], Float[Array, "B"]]
# By modality: values, or what each of them does.
Values = dict[str, Array]

# Of the quadrature of integrated gradients: cells in which the score's changes are looked for, and nodes in a panel.
CELLS, NODES = 64, 4


def answer(model: Multimodal, output: str, batch: Batch) -> Int[Array, "B P"]:
    """What an output predicts at each of P places: the classes of a label's slots, the tokens of a text."""
    return model.outputs[output].answer(model.with_outputs({output}).predict(batch)[output])


def log_probability(
    model: Multimodal, output: str, answer: Int[Array, "B P"], explained: Bool[Array, "B P"], batch: Batch
) -> Float[Array, "B"]:
    """log p(answer at the places explained | batch) in nats; of a text given the tokens before each."""
    streams, _ = model.encode(batch, None)
    fused, _ = model.fuse(streams, model.hidden_modalities[output], None)
    logits = model.outputs[output].answer_logits(answer, fused)
    likely = jax.nn.log_softmax(logits.astype(jnp.float32))
    hot = jax.sharding.reshard(jax.nn.one_hot(answer, likely.shape[-1]), jax.typeof(likely).sharding.spec)
    return jnp.where(explained, (likely * hot).sum(-1), 0).sum(-1)


def ends(batch: Batch, features: Mapping[str, Feature]) -> tuple[Values, Values]:
    """The modalities' relaxed values, and their baseline without content: see `Feature.baseline`.

    What is not real is the same in both.
    """
    given, nothing = {}, {}
    for name, feature in features.items():
        x, real = batch.values[name], batch.present[name]
        real = batch.mask[name] & real[:, None] if name in batch.mask else real
        x = feature.relax(x)
        real = jnp.expand_dims(real, tuple(range(real.ndim, x.ndim)))
        # What is absent may be NaN.
        x = given[name] = jnp.where(real, x, 0)
        nothing[name] = jnp.where(real, feature.baseline(x, real), x)
    return given, nothing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttributionMaps:
    """Attributions of a batch, `maps` of the values' shapes (of texts Float[B N]), with the scores explained.

    `score` is that of the batch, `baseline` that of its baseline.
    """

    # Arrays on the devices or on the host.
    maps: dict[str, Any]
    score: Any
    baseline: Any

    @property
    def error(self) -> Any:
        """|sum of all attributions - (score - baseline)|: 0 if they are complete."""
        total = sum(values.sum(tuple(range(1, values.ndim))) for values in self.maps.values())
        return abs(total - (self.score - self.baseline))


def integrated_gradients(
    score: Score, batch: Batch, features: Mapping[str, Feature], panels: int = 24
) -> AttributionMaps:
    """(x - x') times the mean gradient of the score on the line from x' to x (Sundararajan et al. 2017).

    x are all modalities of `features` together, x' their baseline (see `ends`). The mean is by Gauss-Legendre
    quadrature in so many panels of the line; see `_line`.
    """
    given, nothing = ends(batch, features)

    def between(place: Float[Array, "#B"]) -> Values:
        return {
            name: nothing[name] + jnp.expand_dims(place, tuple(range(1, x.ndim))) * (x - nothing[name])
            for name, x in given.items()
        }

    def add(total: Values, step: tuple[Array, Array]) -> tuple[Values, None]:
        place, weight = step
        slopes = jax.grad(lambda values: (weight * score(_with(batch, values))).sum())(between(place))
        return jax.tree.map(jnp.add, total, slopes), None

    scores = jax.lax.map(lambda place: score(_with(batch, between(place[None]))), jnp.linspace(0, 1, CELLS + 1))
    means, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, given), _line(scores, panels))
    maps = jax.tree.map(lambda mean, end, start: mean * (end - start), means, given, nothing)
    maps = {name: features[name].unrelax(x) for name, x in maps.items()}
    return AttributionMaps(maps, scores[-1], scores[0])


def _line(scores: Float[Array, "K B"], panels: int) -> tuple[Array, Array]:
    """Places on the line from 0 to 1 and their weights, Float[S B] each, for the mean of a slope there.

    A trained model often makes up its mind on a small part of the line, where gradients are steep. So half of the
    panels are spread evenly and half by how much the score changes.
    """
    change = abs(jnp.diff(scores, axis=0))
    density = 1 / CELLS + change / jnp.maximum(change.sum(0), 1e-9)
    below = jnp.cumsum(density, 0) - density
    # Where the cumulative density reaches each bound: the inverse of what is linear in every cell.
    bounds = jnp.linspace(0, density.sum(0), panels + 1)[:, None]
    edges = jnp.clip((bounds - below) / density, 0, 1).sum(1) / CELLS
    nodes, weights = (array[:, None].astype(np.float32) / 2 for array in np.polynomial.legendre.leggauss(NODES))
    begin, length = edges[:-1, None], jnp.diff(edges, axis=0)[:, None]
    return jax.lax.collapse(begin + length * (nodes + 0.5), 0, 2), jax.lax.collapse(length * weights, 0, 2)


def _with(batch: Batch, values: Values) -> Batch:
    return dataclasses.replace(batch, values=batch.values | values)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which of `count` windows every place of a modality's values is in."""

    places: Int[Array, "#B ..."] | Int[np.ndarray, "1 ..."]
    count: int


def windows(feature: Feature) -> Windows:
    """The windows of a feature: 8 x 8 of an image Int[1 H W], 16 x 4 of a spectrogram Int[1 T M], ..."""
    shape, parts = feature.windows
    sides = [math.ceil(size / part) for size, part in zip(shape, parts, strict=True)]
    counts = [math.ceil(size / side) for size, side in zip(shape, sides, strict=True)]
    within = [place // side for place, side in zip(np.indices(shape), sides, strict=True)]
    return Windows(np.ravel_multi_index(within, counts)[None], math.prod(counts))


def occlusion(score: Score, batch: Batch, features: Mapping[str, Feature], windows: Mapping[str, Windows]) -> Values:
    """How much the score falls where a window is replaced by the baseline (Zeiler & Fergus 2014, 4.2).

    Maps of the windows' shape, for all B examples.
    """
    given, nothing = ends(batch, features)
    whole = score(_with(batch, given))

    def cover(name: str) -> Array:
        x, places = given[name], jnp.asarray(windows[name].places)
        inner = tuple(range(places.ndim, x.ndim))

        def add(total: Array, window: Int[Array, ""]) -> tuple[Array, None]:
            inside = places == window
            covered = jnp.where(jnp.expand_dims(inside, inner), nothing[name], x)
            fall = whole - score(_with(batch, given | {name: covered}))
            return jnp.where(inside, jnp.expand_dims(fall, tuple(range(1, places.ndim))), total), None

        return jax.lax.scan(add, jnp.zeros_like(x.sum(inner)), jnp.arange(windows[name].count))[0]

    return {name: cover(name) for name in windows}


def contributions(score: Score, batch: Batch, modalities: tuple[str, ...]) -> dict[str, Float[Array, "B"]]:
    """Every modality's Shapley value for every example's score; they add up to what all together add."""
    subsets = [set(some) for size in range(len(modalities) + 1) for some in itertools.combinations(modalities, size)]
    kept = np.array([[name in subset for name in modalities] for subset in subsets])

    def without(keep: Bool[Array, "M"]) -> Float[Array, "B"]:
        seen = {name: batch.present[name] & keep[index] for index, name in enumerate(modalities)}
        return score(dataclasses.replace(batch, present=batch.present | seen))

    scores = jax.lax.map(without, kept)
    return shapley({frozenset(subset): scores[index] for index, subset in enumerate(subsets)})


def rank_correlation(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "E"]:
    """Spearman's rank correlation of two maps of every example where either is not 0; NaN if nowhere.

    Of maps of a model and of one with other parameters it should be small (Adebayo et al. 2018): what they then have in
    common is not what the model has learned. Where the example is its own baseline both are zero whatever the model.
    """
    from scipy.stats import rankdata

    result = np.full(len(first), np.nan)
    for row, (one, other) in enumerate(zip(first.reshape(len(first), -1), second.reshape(len(first), -1), strict=True)):
        known = (one != 0) | (other != 0)
        ranks = rankdata(one[known]), rankdata(other[known])
        if all(np.ptp(each) > 0 for each in ranks if each.size) and known.any():
            result[row] = np.corrcoef(*ranks)[0, 1]
    return result
