"""Attention and its gradient, for short and for long sequences, 6 heads of 64."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .runner import Benchmark, Ratio

HEADS, SIZE = 6, 64
# Examples and tokens.
SHAPES = {"64 tokens": (64, 64), "1,024 tokens": (4, 1024)}
CALLS = 10


def _arrays(examples: int, tokens: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(examples, tokens, HEADS, SIZE)).astype(np.float32) for _ in range(3)]


def _timed(calls: dict[str, Callable[[], Any]]) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        found = {}
        for name, call in calls.items():
            call()
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            found[name] = (time.perf_counter() - began) / CALLS
        return found

    return measure


def _jax(attend: Callable[..., Any], dtype: str) -> Callable[[], dict[str, float]]:
    import jax
    import jax.numpy as jnp

    def make(examples: int, tokens: int) -> Callable[[], Any]:
        given = [jnp.asarray(array, jnp.dtype(dtype)) for array in _arrays(examples, tokens)]
        slopes = jax.grad(lambda *given: attend(*given).astype(jnp.float32).sum(), (0, 1, 2))
        compiled = jax.jit(slopes).lower(*given).compile()
        return lambda: jax.block_until_ready(compiled(*given))

    return _timed({name: make(*shape) for name, shape in SHAPES.items()})


def ours(dtype: str) -> Callable[[], dict[str, float]]:
    """mmjax's attention."""
    from mmjax.layers.attention_kernels import attend

    return _jax(lambda query, key, value: attend(query, key, value, None, False), dtype)


def plain(dtype: str) -> Callable[[], dict[str, float]]:
    """JAX's own function."""
    import jax

    return _jax(jax.nn.dot_product_attention, dtype)


def torch(dtype: str) -> Callable[[], dict[str, float]]:
    """PyTorch's `scaled_dot_product_attention`."""
    import torch

    def make(examples: int, tokens: int) -> Callable[[], Any]:
        given = [
            torch.from_numpy(array.swapaxes(1, 2).copy()).to(getattr(torch, dtype)).requires_grad_()
            for array in _arrays(examples, tokens)
        ]

        def call() -> Any:
            total = torch.nn.functional.scaled_dot_product_attention(*given).sum()
            return torch.autograd.grad(total, given)

        return call

    return _timed({name: make(*shape) for name, shape in SHAPES.items()})


BENCHMARK = Benchmark(
    about="attention and its gradient",
    implementations={"mmjax": ours, "jax": plain, "torch": torch},
    ratios=tuple(
        Ratio(f"{shape}, over {peer}'s", "mmjax", peer, shape) for shape in SHAPES for peer in ("torch", "jax")
    ),
)
