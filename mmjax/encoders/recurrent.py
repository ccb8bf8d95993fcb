"""Recurrent networks."""

from typing import Literal

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.encoders.base import Encoder, Intermediates, require_feature
from mmjax.errors import UserError
from mmjax.layers.attention import Mask
from mmjax.layers.linear import Embedding, Linear
from mmjax.layers.norm import RMSNorm, dropout
from mmjax.layers.packed import has_segments, segment_positions, segment_starts
from mmjax.layers.patches import group_sequence, pad_to_multiple, reshape
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import Rules
from mmjax.types import Feature, Spectrogram, Text, Tokens


@chz.chz
class Recurrent(Encoder):
    """Bidirectional GRU or LSTM over text or log-mel frames.

    Cho et al. 2014; Hochreiter & Schmidhuber 1997.
    """

    cell: Literal["gru", "lstm"] = chz.field(default="gru", doc="kind of cell")
    depth: int = chz.field(default=1, doc="layers")
    patch: int = chz.field(default=2, doc="consecutive spectrogram frames per step")

    @chz.validate
    def _valid(self) -> None:
        if not 1 <= self.depth <= 100:  # layers are compiled one by one
            raise ValueError(f"depth={self.depth} must lie between 1 and 100")
        if self.patch < 1:
            raise ValueError(f"patch={self.patch} must be at least 1")

    def packed_stride(self, feature: Feature) -> int:
        return 1 if isinstance(feature, Text) else self.patch

    def build(self, feature: Feature, settings: Settings, rngs: nnx.Rngs) -> "RecurrentEncoder":
        read = require_feature(self, feature, Text, Spectrogram)
        if settings.width % 2:
            raise UserError(f"Recurrent needs an even model.width for its two directions, not {settings.width}")
        return RecurrentEncoder(self, read, settings, rngs)


class GRUCell(nnx.Module):
    """h' = (1 - z) n + z h with n = tanh(W x + r * (U h)), gates z and r sigmoids of x and h."""

    GATES = 3

    def __init__(self, width: int, *, rules: Rules, rngs: nnx.Rngs):
        self.recur = Linear((width, 3, width), ("embed", None, None), bias=True, rules=rules, rngs=rngs)

    def start(self, like: Float[Array, "B D"]) -> Float[Array, "B D"]:
        return jnp.zeros_like(like)

    def __call__(self, state: Float[Array, "B D"], inputs: Float[Array, "B 3 D"]) -> Float[Array, "B D"]:
        hidden = self.recur(state)
        reset = jax.nn.sigmoid(inputs[:, 0] + hidden[:, 0])
        update = jax.nn.sigmoid(inputs[:, 1] + hidden[:, 1])
        candidate = jnp.tanh(inputs[:, 2] + reset * hidden[:, 2])
        return (1 - update) * candidate + update * state

    def output(self, state: Float[Array, "B D"]) -> Float[Array, "B D"]:
        return state


class LSTMCell(nnx.Module):
    """c' = f c + i g and h' = o tanh(c'), with sigmoid gates i, f, o and g = tanh of x and h.

    The forget gate's bias starts at 1.
    """

    GATES = 4

    def __init__(self, width: int, *, rules: Rules, rngs: nnx.Rngs):
        self.recur = Linear((width, 4, width), ("embed", None, None), bias=True, rules=rules, rngs=rngs)

    def start(self, like: Float[Array, "B D"]) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        return jnp.zeros_like(like), jnp.zeros_like(like)

    def __call__(
        self, state: tuple[Float[Array, "B D"], Float[Array, "B D"]], inputs: Float[Array, "B 4 D"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        memory, hidden = state
        gates = inputs + self.recur(hidden)
        write, forget, output = (
            jax.nn.sigmoid(gates[:, gate] + start) for gate, start in ((0, 0.0), (1, 1.0), (2, 0.0))
        )
        memory = forget * memory + write * jnp.tanh(gates[:, 3])
        return memory, output * jnp.tanh(memory)

    def output(self, state: tuple[Float[Array, "B D"], Float[Array, "B D"]]) -> Float[Array, "B D"]:
        return state[1]


CELLS: dict[str, type[GRUCell] | type[LSTMCell]] = {"gru": GRUCell, "lstm": LSTMCell}


class RecurrentLayer(nnx.Module):
    """One direction over time; the state does not change where the mask is false.

    Each segment of packed sequences begins with a new state.
    """

    def __init__(self, inputs: int, width: int, cell: str, reverse: bool, *, rules: Rules, rngs: nnx.Rngs):
        kind = CELLS[cell]
        self.read = Linear((inputs, kind.GATES, width), ("embed", None, None), bias=True, rules=rules, rngs=rngs)
        self.cell = kind(width, rules=rules, rngs=rngs)
        self.reverse = reverse

    def __call__(self, x: Float[Array, "B N C"], mask: Mask) -> Float[Array, "B N D"]:
        inputs = jnp.swapaxes(self.read(x), 0, 1)
        begins = _first_in_segment(mask, self.reverse) if has_segments(mask) else None

        def step(state, now):
            gates, real, first = now
            if first is not None:
                state = jax.tree.map(lambda old, new: jnp.where(first[:, None], new, old), state, start)
            following = self.cell(state, gates)
            state = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), following, state)
            return state, self.cell.output(state)

        start = self.cell.start(inputs[0, :, 0])
        now = inputs, jnp.swapaxes(mask > 0, 0, 1), None if begins is None else jnp.swapaxes(begins, 0, 1)
        _, outputs = jax.lax.scan(step, start, now, reverse=self.reverse)
        return jnp.swapaxes(outputs, 0, 1)


def _first_in_segment(segments: Array, reverse: bool) -> Array:
    """Where a segment begins in the direction of reading."""
    return segment_starts(segments[:, ::-1])[:, ::-1] if reverse else segment_starts(segments)


class RecurrentEncoder(nnx.Module):
    """Embedding or frame patches -> bidirectional layers -> norm and projection; one token per step.

    Masked frames and the padding of the last patch count as zeros.
    """

    def __init__(self, config: Recurrent, feature: Text | Spectrogram, settings: Settings, rngs: nnx.Rngs):
        rules, width = settings.rules, settings.width
        self.patch, self.dtype = config.patch, settings.dtype
        self.seconds = feature.seconds if isinstance(feature, Spectrogram) else 0.0
        self.embed: Embedding | Linear
        if isinstance(feature, Text):
            self.embed = Embedding(feature.vocabulary, width, rules=rules, rngs=rngs)
        else:
            self.embed = Linear(
                (config.patch * feature.bands, width), (None, "embed"), bias=True, rules=rules, rngs=rngs
            )
        self.forward: nnx.List[RecurrentLayer] = nnx.List()
        self.backward: nnx.List[RecurrentLayer] = nnx.List()
        self.norms: nnx.List[RMSNorm] = nnx.List()
        for _ in range(config.depth):
            for direction, reverse in ((self.forward, False), (self.backward, True)):
                direction.append(RecurrentLayer(width, width // 2, config.cell, reverse, rules=rules, rngs=rngs))
            self.norms.append(RMSNorm(width, rules=rules, rngs=rngs))
        self.project = Linear((width, width), (None, "embed"), rules=rules, rngs=rngs)
        self.rate, self.rules = settings.dropout, rules

    def __call__(self, values: Array, mask: Mask, key: jax.Array | None) -> tuple[Tokens, Intermediates]:
        time = None
        if isinstance(self.embed, Embedding):
            x = self.embed(values, self.dtype)
        else:
            values, mask = pad_to_multiple(values, mask, self.patch)
            mask = group_sequence(mask, self.patch, rules=self.rules).max(2)
            patches = reshape(values, mask.shape[1], self.patch * values.shape[2], rules=self.rules)
            x = self.embed(patches.astype(self.dtype))
            places = segment_positions(mask) if has_segments(mask) else jnp.arange(x.shape[1])
            time = (places + 0.5) * self.patch * self.seconds + jnp.zeros_like(x[..., 0], jnp.float32)
        layers = {}
        keys = [None] * len(self.norms) if key is None else jax.random.split(key, len(self.norms))
        for index, (forward, backward, norm) in enumerate(zip(self.forward, self.backward, self.norms, strict=True)):
            both = norm(jnp.concatenate([forward(x, mask), backward(x, mask)], -1))
            x = both if index == 0 else x + dropout(both, self.rate, keys[index])
            layers[f"layer{index}"] = x
        return Tokens(self.project(x), mask > 0, time), layers
