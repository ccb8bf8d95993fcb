"""What passes between the rooms: a batch, tokens, fused tokens, averages; and the static description of a feature."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Global batch of B examples: plain arrays by feature (modality or target) name.

    `values[name]` is one of
      an image     Float[B H W C] in [0, 1]
      a text       Int[B N]          token ids
      a spectrum   Float[B T M]      log-mel frames
      a waveform   Float[B T]        samples of sound
      a label      Int[B S]          S answers from the same classes
      a quantity   Float[B S Q]      S vectors of Q numbers
    `mask[name]` says which of the N, T or S places are real (every feature but images has one) and `present[name]`
    whether the example has the feature at all. Values where `present` is false mean nothing and must not reach any
    output.
    """

    # Arrays on devices or on the host, or, where a tree of that shape is meant, whatever stands for them.
    values: dict[str, Any]
    mask: dict[str, Any]
    present: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence of feature vectors: values, which are real, and when each is (seconds on its example's clock)."""

    values: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]
    time: Float[Array, "B N"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fused:
    """What outputs read: the fused tokens, their summary, and every modality's own tokens from before the fusion."""

    tokens: Tokens
    pooled: Float[Array, "B D"]
    unimodal: dict[str, Tokens]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """A weighted mean kept as sums, so that averages of parts add up to the average of the whole.

    The sums are those of each example, or of all where examples cannot be told apart.
    """

    # Float[Array, "B"] or Float[Array, ""] on the devices, NumPy's on the host.
    totals: Any
    weights: Any

    @classmethod
    def of(cls, values: Float[Array, "..."], weights: Any) -> "Average":
        """The average of `values` under `weights` (booleans or floats that broadcast to them); weight 0 hides NaN."""
        weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
        totals = jnp.where(weights != 0, values.astype(jnp.float32), 0) * weights
        inside = tuple(range(1, values.ndim))
        return cls(totals.sum(inside), weights.sum(inside))

    @property
    def total(self) -> Any:
        """The weighted sum of all."""
        return self.totals.sum()

    @property
    def weight(self) -> Any:
        """The weight of all."""
        return self.weights.sum()

    def value(self) -> Any:
        """total / weight; 0 where nothing was weighed."""
        return self.total / jnp.where(self.weight == 0, 1, self.weight)

    def whole(self) -> "Average":
        """The same without the examples."""
        return Average(self.total, self.weight)

    def figures(self, name: str) -> dict[str, float]:
        """What is logged of it, on the host."""
        return {name: float(self.value())}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """How often each of K things has occurred, so that counts of parts add up to those of the whole."""

    # Float[Array, "K"] on the devices, NumPy's on the host.
    counts: Any

    def whole(self) -> "Counts":
        """The same: nothing is kept of single examples."""
        return self

    def figures(self, name: str) -> dict[str, float]:
        """The share of things that occurred at all, and the perplexity: as many equally frequent ones vary as much."""
        counts = np.asarray(self.counts, np.float64)
        shares = counts[counts > 0] / max(1, counts.sum())
        perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
        return {f"{name}_usage": float((counts > 0).mean()), f"{name}_perplexity": perplexity}


Metrics = dict[str, Average | Counts]


@dataclasses.dataclass(frozen=True)
class Information:
    """What two modalities A and B tell about a label Y: I(A,B;Y) in four parts that are not negative, in bits."""

    unique_a: float
    unique_b: float
    redundant: float
    synergy: float

    @property
    def total(self) -> float:
        """I(A,B;Y)."""
        return self.unique_a + self.unique_b + self.redundant + self.synergy

    def as_json(self) -> dict[str, float]:
        """The parts and their sum."""
        return dataclasses.asdict(self) | {"total": self.total}


@dataclasses.dataclass(frozen=True)
class Image:
    """Pictures of height x width pixels and C channels, as Float[B H W C] in [0, 1]."""

    height: int
    width: int
    channels: int


# The ids that stand for no text: what fills up, and what ends every text.
PADDING, END = 0, 1


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids Int[B N] below `vocabulary`, at most `length` of them. Id 0 is padding."""

    length: int
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """Log-mel frames Float[B T M]: at most `frames` of `bands` bands, one every `seconds`."""

    frames: int
    bands: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Waveform:
    """Samples of sound Float[B T]: at most `samples` of them, `rate` a second."""

    samples: int
    rate: int


@dataclasses.dataclass(frozen=True)
class Label:
    """`slots` answers, each one of `names`, as Int[B S]."""

    names: tuple[str, ...]
    slots: int = 1


@dataclasses.dataclass(frozen=True)
class Vector:
    """`slots` vectors of `size` numbers as Float[B S Q]."""

    size: int
    slots: int = 1


Feature = Image | Text | Spectrogram | Waveform | Label | Vector
