"""Types shared by all rooms: batches, tokens, fused tokens, averages, and feature descriptions."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# The size of a dimension: an int, or a symbolic one while a function is exported.
DimSize = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Global batch of B examples: plain arrays by feature (modality or target) name.

    `values[name]` is one of
      an image     Float[B H W C] in [0, 1]
      patches      Float[B N P]      N patches of an image, with their places
      a text       Int[B N]          token ids
      a spectrogram  Float[B T M]    log-mel frames
      a waveform   Float[B T]        samples
      a label      Int[B S]          S labels of the same classes
      a vector     Float[B S Q]      S vectors of Q numbers
    `mask[name]` says which of the N, T or S positions are real (every feature but images has one) and `present[name]`
    whether the example has the feature at all. Values where `present` is false are undefined and must not reach any
    output. A feature in `packed` has the sequences of several examples in each of its R rows of L positions: its values
    begin with [R L], its mask is segment ids Int[R L], which differ among the sequences of a row; 0 is padding.
    """

    # Arrays on devices or on the host, or other leaves in a tree of this structure.
    values: dict[str, Any]
    mask: dict[str, Any]
    present: dict[str, Any]
    packed: dict[str, "Packed"] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Where the B examples of a batch have their sequences in the R rows of a packed feature.

    A batch has `parts` equal parts of consecutive examples and rows; the sequences of a part's examples lie in its
    rows. `rows` counts within the part, `longest` the positions of a sequence at most.
    """

    # Int[Array, "B"], on devices or on the host.
    rows: Any
    starts: Any
    lengths: Any
    parts: int = dataclasses.field(metadata={"static": True})
    row_count: int = dataclasses.field(metadata={"static": True})
    row_length: int = dataclasses.field(metadata={"static": True})
    longest: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence of feature vectors with a mask and, optionally, times in seconds (example's clock).

    `pooled` is an encoder's own summary of them, where it makes one; see `Pool`.
    """

    values: Float[Array, "B N D"]
    mask: Bool[Array, "B N"]
    time: Float[Array, "B N"] | None = None
    pooled: Float[Array, "B E"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fused:
    """The input of outputs: fused tokens, their summary, and each modality's tokens before fusion."""

    tokens: Tokens
    pooled: Float[Array, "B D"]
    unimodal: dict[str, Tokens]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """A weighted mean kept as sums, so that averages of parts add up to the average of the whole.

    The sums are per example, or over all where examples cannot be separated.
    """

    # Float[Array, "B"] or Float[Array, ""] on the devices, NumPy's on the host.
    totals: Any
    weights: Any

    @classmethod
    def of(cls, values: Float[Array, "..."], weights: Any) -> "Average":
        """The average of `values` with these weights (booleans or floats); weight 0 hides NaN."""
        weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
        totals = jnp.where(weights != 0, values.astype(jnp.float32), 0) * weights
        inside = tuple(range(1, values.ndim))
        return cls(totals.sum(inside), weights.sum(inside))

    @property
    def total(self) -> Any:
        """The weighted sum over all examples."""
        return self.totals.sum()

    @property
    def weight(self) -> Any:
        """The weight of all examples."""
        return self.weights.sum()

    def value(self) -> Any:
        """total / weight; 0 where the weight is 0."""
        return self.total / jnp.where(self.weight == 0, 1, self.weight)

    def summed(self) -> "Average":
        """The same summed over the examples."""
        return Average(self.total, self.weight)

    def figures(self, name: str) -> dict[str, float]:
        """The logged values by name, on the host."""
        return {name: float(self.value())}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """How often each of K things has occurred, so that counts of parts add up to those of the whole."""

    # Float[Array, "K"] on the devices, NumPy's on the host.
    counts: Any

    def summed(self) -> "Counts":
        """The same: nothing is kept per example."""
        return self

    def figures(self, name: str) -> dict[str, float]:
        """The share of things that occurred at all, and the perplexity of their frequencies."""
        counts = np.asarray(self.counts, np.float64)
        shares = counts[counts > 0] / max(1, counts.sum())
        perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
        return {f"{name}_usage": float((counts > 0).mean()), f"{name}_perplexity": perplexity}


Metrics = dict[str, Average | Counts]


@dataclasses.dataclass(frozen=True)
class Information:
    """Partial information of two modalities A and B about a label Y: four parts of I(A,B;Y), in bits."""

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
class Feature:
    """What the arrays of a modality or a target look like; by default floats with a mask."""

    dtype: ClassVar[type[np.generic]] = np.float32
    has_mask: ClassVar[bool] = True
    # Whether it has positions in an order, and so may be packed.
    is_sequence: ClassVar[bool] = False
    # Whether it is an image or audio, which people look at or listen to.
    is_media: ClassVar[bool] = False
    is_text: ClassVar[bool] = False
    is_waveform: ClassVar[bool] = False
    drawn_as: ClassVar[Literal["image", "spectrogram"] | None] = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example's values; where there is a mask, that of the mask is the first dimension."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that it chooses from; none where it is not a label."""
        return ()

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The dimensions along which attribution hides parts of the values, and how many parts of each."""
        return self.shape[:1], self.shape[:1]

    def relax(self, x: Array) -> Array:
        """The values of a batch as floats that gradients reach."""
        return x

    def unrelax(self, map: Array) -> Array:
        """Attributions of relaxed values as those of the values."""
        return map

    def baseline(self, x: Array, real: Array) -> Array:
        """Relaxed values of an example without content; `real` says which values count."""
        return jnp.zeros_like(x)

    def spread_tokens(self, tokens: Float[np.ndarray, "N"]) -> Float[np.ndarray, "..."]:
        """A number of each of an encoder's tokens as numbers of the values that the tokens stand for."""
        return tokens

    def upright(self, x: np.ndarray) -> np.ndarray:
        """An example's values, or numbers of each, as they are drawn: from left to right, top down."""
        return x

    def add_noise(self, x: Array, real: Array, amount: Array | float, key: jax.Array) -> Array:
        """One example's values with white Gaussian noise of `amount` times the deviation of the real ones."""
        deviation = jnp.std(x, where=real)  # not a number where nothing is real, and not used then
        return jnp.where(real, x + amount * deviation * jax.random.normal(key, x.shape, x.dtype), x)


@dataclasses.dataclass(frozen=True)
class Image(Feature):
    """Images of height x width pixels and C channels, as Float[B H W C] in [0, 1]."""

    has_mask = False
    is_media = True
    drawn_as = "image"

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.height, self.width, self.channels

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.height, self.width), (8, 8)

    def baseline(self, x: Array, real: Array) -> Array:
        """The median of the image's own colours."""
        colours = jnp.sort(jax.lax.collapse(x, 1, 3), 1)
        return colours[:, colours.shape[1] // 2, None, None]

    def spread_tokens(self, tokens: Float[np.ndarray, "N"]) -> Float[np.ndarray, "H W"]:
        """Of patches, whose grid is the one with the most square patches."""
        count = len(tokens)
        columns = min(
            (n for n in range(1, count + 1) if count % n == 0),
            key=lambda n: abs(math.log(count / n / n * self.width / self.height)),
        )
        grid = tokens.reshape(-1, columns)
        rows = np.arange(self.height) * len(grid) // self.height
        return grid[rows][:, np.arange(self.width) * columns // self.width]


@dataclasses.dataclass(frozen=True)
class Patches(Feature):
    """Square patches of an image in its own aspect ratio, row by row, as Float[B N P].

    At most `length` of `side` x `side` pixels. A patch holds its pixels in [0, 1] row by row, then its centre's y and x
    as shares of the image's height and width: P = side * side * channels + 2.
    """

    is_sequence = True
    is_media = True

    length: int
    side: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.side**2 * self.channels + 2

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.length,), (64,)

    def baseline(self, x: Array, real: Array) -> Array:
        """The mean of the image's own colours, at the same places."""
        totals = jnp.where(real, x[..., :-2], 0).sum(1, keepdims=True)
        count = self.side**2 * jnp.maximum(real.sum(1, keepdims=True), 1)
        means = [totals[..., channel :: self.channels].sum(-1) for channel in range(self.channels)]
        colour = jnp.tile(jnp.stack(means, -1) / count, self.side**2)
        return jnp.concatenate([jnp.broadcast_to(colour, x[..., :-2].shape), x[..., -2:]], -1)

    def add_noise(self, x: Array, real: Array, amount: Array | float, key: jax.Array) -> Array:
        pixels = super().add_noise(x[..., :-2], real[..., :-2], amount, key)
        return jnp.concatenate([pixels, x[..., -2:]], -1)


# The ids that stand for no text: padding, and the end of every text.
PADDING, END = 0, 1


@dataclasses.dataclass(frozen=True)
class Text(Feature):
    """Token ids Int[B N] below `vocabulary`, at most `length` of them. Id 0 is padding."""

    is_sequence = True
    dtype = np.int32
    is_text = True

    length: int
    vocabulary: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    def relax(self, x: Array) -> Array:
        """Shares Float[B N V] of every id."""
        return jax.nn.one_hot(x, self.vocabulary)

    def unrelax(self, map: Array) -> Array:
        # The change is from one id to another, both of which have a part in it.
        return map.sum(-1)

    def baseline(self, x: Array, real: Array) -> Array:
        """Padding."""
        return jax.nn.one_hot(PADDING, self.vocabulary)

    def add_noise(self, x: Array, real: Array, amount: Array | float, key: jax.Array) -> Array:
        """A share amount / (1 + amount) of the tokens is replaced by random ones, of which none ends the text."""
        chance, other = jax.random.split(key)
        drawn = jax.random.randint(other, x.shape, END + 1, self.vocabulary, x.dtype)
        return jnp.where(real & (jax.random.uniform(chance, x.shape) < amount / (1 + amount)), drawn, x)


@dataclasses.dataclass(frozen=True)
class Spectrogram(Feature):
    """Log-mel frames Float[B T M]: at most `frames` of `bands` bands, one every `seconds`."""

    is_sequence = True
    is_media = True
    drawn_as = "spectrogram"

    frames: int
    bands: int
    seconds: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, self.bands

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.frames, self.bands), (16, 4)

    def baseline(self, x: Array, real: Array) -> Array:
        """Of every band the lowest value of the example's real frames."""
        return jnp.where(real, x, jnp.inf).min(1, keepdims=True)

    def spread_tokens(self, tokens: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T M"]:
        stride = math.ceil(self.frames / len(tokens))
        return np.repeat(np.repeat(tokens, stride)[: self.frames, None], self.bands, 1)

    def upright(self, x: np.ndarray) -> np.ndarray:
        return x.T[::-1]


@dataclasses.dataclass(frozen=True)
class Waveform(Feature):
    """Samples Float[B T]: at most `samples` of them, `rate` per second."""

    is_media = True
    is_waveform = True

    samples: int
    rate: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.samples,)

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.samples,), (64,)


@dataclasses.dataclass(frozen=True)
class Label(Feature):
    """`slots` labels, each one of `names`, as Int[B S]."""

    dtype = np.int32

    names: tuple[str, ...]
    slots: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.slots,)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names


@dataclasses.dataclass(frozen=True)
class Vector(Feature):
    """`slots` vectors of `size` numbers as Float[B S Q]."""

    size: int
    slots: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slots, self.size
