"""The layers once more in plain NumPy and float64, and parameters drawn without compiling anything."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx


def draw(make: Callable[[nnx.Rngs], Any], seed: int = 0, scale: float = 0.3) -> Any:
    """The module that `make` builds, every parameter replaced by random numbers: the same ones on every mesh."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return jax.device_put((scale * rng.normal(size=leaf.shape)).astype(leaf.dtype), leaf.sharding.spec)

    return jax.tree.map(fill, jax.eval_shape(lambda key: make(nnx.Rngs(key)), jax.random.key(0)))


def slopes(function: Callable[[Any], Any], x: Any, step: float) -> tuple[float, float]:
    """How fast a function of an array rises in a random direction, by its gradient and by a central difference."""
    both = jax.jit(jax.value_and_grad(function))  # one program, as compiling takes longest
    direction = np.random.default_rng(0).normal(size=x.shape).astype(x.dtype)
    difference = float(both(x + step * direction)[0]) - float(both(x - step * direction)[0])
    return float((both(x)[1] * direction).sum()), difference / (2 * step)


def wide(parameter: Any) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def layers(stack: Any) -> list[Any]:
    """The blocks of a stack one by one."""
    return [jax.tree.map(lambda leaf, index=index: leaf[index], stack.blocks) for index in range(stack.depth)]


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    y = np.tensordot(x, wide(layer.kernel), layer.inputs)
    return y if layer.bias is None else y + wide(layer.bias)


def norm(layer: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * wide(layer.gain)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(layer: Any, x: np.ndarray, context: np.ndarray | None = None, mask: np.ndarray | None = None):
    """Example by example and head by head, over the context tokens that the mask leaves."""
    context = x if context is None else context
    result = np.zeros(x.shape)
    for b in range(len(x)):
        seen = context[b] if mask is None else context[b][mask[b]]
        if len(seen):
            query, key, value = (
                linear(part, rows) for part, rows in zip(_projections(layer), (x[b], seen, seen), strict=True)
            )
            mixed = np.zeros(query.shape)
            for head in range(query.shape[1]):
                weights = softmax(query[:, head] @ key[:, head].T / np.sqrt(query.shape[2]))
                mixed[:, head] = weights @ value[:, head]
            result[b] = linear(layer.out, mixed)
    return result


def _projections(layer: Any) -> tuple[Any, Any, Any]:
    return layer.query, layer.key, layer.value


def mlp(layer: Any, x: np.ndarray) -> np.ndarray:
    return linear(layer.down, gelu(linear(layer.up, x)))


def block(layer: Any, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    x = x + attention(layer.attention, norm(layer.attention_norm, x), mask=mask)
    return x + mlp(layer.mlp, norm(layer.mlp_norm, x))


def pool(layer: Any, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    query = np.broadcast_to(wide(layer.probe), (len(x), 1, x.shape[2]))
    return attention(layer.attention, query, norm(layer.norm, x), mask)[:, 0]


def masked_mean(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.stack(
        [rows[real].mean(0) if real.any() else np.zeros(x.shape[2]) for rows, real in zip(x, mask, strict=True)]
    )


def time_embedding(time: np.ndarray, width: int) -> np.ndarray:
    """Half sines, half cosines of 2 pi t / period, with periods from 20 ms to 200 s in equal ratios."""
    periods = np.geomspace(0.02, 200, width // 2)
    angles = 2 * np.pi * time[..., None] / periods
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Cross-correlation [B H W C] x [k k C D], padded to ceil(size / stride) places, the smaller half of it before."""
    side = kernel.shape[0]
    places = [-(-size // stride) for size in x.shape[1:3]]
    missing = [max((n - 1) * stride + side - size, 0) for n, size in zip(places, x.shape[1:3], strict=True)]
    x = np.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    y = np.zeros((len(x), *places, kernel.shape[3]))
    for row in range(places[0]):
        for column in range(places[1]):
            window = x[:, row * stride : row * stride + side, column * stride : column * stride + side]
            y[:, row, column] = np.tensordot(window, kernel, 3)
    return y
