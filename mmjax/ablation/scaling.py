"""How the cost of fusions grows with the number of tokens."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from mmjax.fusion import Fusion
from mmjax.fusion.base import FusionModule
from mmjax.hardware.flops import count_flops
from mmjax.layers.settings import Settings
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import Rules
from mmjax.types import Tokens

# Values and mask of every modality's tokens, or their shapes.
Streams = dict[str, tuple[Any, Any]]
# One example on one device: nothing is split, not even over mesh axes of one device, which JAX 0.12's attention refuses
# for a batch of one.
RULES = Rules(batch=(), group=(), expert=())
# What a call may need besides its arguments to be timed: attention of all tokens to all holds a number for every pair
# of them and every head.
MEMORY_BYTES = 4e9
# Calls that are timed, and the seconds after which no other begins.
CALLS, ENOUGH_SECONDS = 3, 1.0


def cost_scaling(
    fusions: dict[str, Fusion],
    modalities: tuple[str, ...],
    width: int,
    tokens: Sequence[int] = (64, 256, 1024, 4096),
    *,
    timed: bool,
) -> dict[str, Any]:
    """The cost of a forward pass over one float32 example by the tokens, of `width` each, of modalities.

    A dictionary for JSON:
      tokens            those given, two or more sizes, ascending
      flops[name]       model FLOPs by size
      seconds[name]     by size, of the best of three calls (of fewer where they take long) on one device; None where
                        `timed` is false, or where a call would need more than 4 GB
      exponents[name]   p of FLOPs ~ tokens^p between the two largest sizes; None for a fusion without matrix products
    Raises UserError where a fusion cannot be built for these modalities and this width.
    """
    flops: dict[str, list[int]] = {}
    seconds: dict[str, list[float | None]] = {}
    with jax.set_mesh(MeshShape(data=1).build(jax.local_devices()[:1])):
        sizes = [_streams(modalities, size, width) for size in tokens]
        for name, fusion in fusions.items():
            module = _build(fusion, modalities, width)
            flops[name] = [count_flops(_forward, module, streams) for streams in sizes]
            seconds[name] = [_time(module, streams) if timed else None for streams in sizes]
    exponents = {name: _exponent(tokens, counts) for name, counts in flops.items()}
    return {"tokens": list(tokens), "flops": flops, "seconds": seconds, "exponents": exponents}


def _build(fusion: Fusion, modalities: tuple[str, ...], width: int) -> FusionModule:
    """The fusion with the shapes of its parameters in their place."""
    settings = Settings(width=width, rules=RULES)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: fusion.build(modalities, settings, nnx.Rngs(key)), key)


def _streams(modalities: tuple[str, ...], size: int, width: int) -> Streams:
    """The shapes of one example's tokens on the mesh."""
    sharding = NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch"))
    values = jax.ShapeDtypeStruct((1, size, width), jnp.float32, sharding=sharding)
    mask = jax.ShapeDtypeStruct((1, size), bool, sharding=sharding)
    return dict.fromkeys(modalities, (values, mask))


@jax.jit
def _forward(module: FusionModule, streams: Streams) -> tuple[jax.Array, jax.Array]:
    fused, pooled, _ = module({name: Tokens(*stream) for name, stream in streams.items()}, None)
    return fused.values, pooled


def _time(module: FusionModule, streams: Streams) -> float | None:
    """Seconds of the best call on arrays of these shapes; None where it would need too much memory."""
    arguments = _draw((module, streams))
    compiled = _forward.lower(*arguments).compile()
    memory = compiled.memory_analysis()
    if memory is not None and memory.temp_size_in_bytes > MEMORY_BYTES:  # not every backend tells
        return None
    calls: list[float] = []
    while len(calls) < CALLS and sum(calls) < ENOUGH_SECONDS:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        calls.append(time.perf_counter() - begin)
    return min(calls)


def _draw(shapes: Any) -> Any:
    """Arrays of these shapes, small numbers or true, without compiling a fusion's initialization."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        small = 0.02 * rng.normal(size=leaf.shape)
        return jax.device_put(small.astype(leaf.dtype), leaf.sharding.spec)

    return jax.tree.map(fill, shapes)


def _exponent(tokens: Sequence[int], flops: list[int]) -> float | None:
    if flops[-2] == 0:
        return None
    return math.log(flops[-1] / flops[-2]) / math.log(tokens[-1] / tokens[-2])
