"""Vector quantizers with straight-through gradients."""

import abc
import math
from typing import Protocol, runtime_checkable

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.linear import look_up, make_parameter
from mmjax.layers.norm import unit_norm
from mmjax.sharding.rules import Rules, reshard

Grid = Float[Array, "B h w Z"]
# Added to squared lengths: vectors near zero, as encoders draw them at first, keep gradients of moderate size.
EPSILON = 1e-6


@runtime_checkable
class QuantizerModule(Protocol):
    """A built quantizer of vectors of `width` numbers to one of `size` codes."""

    width: int
    size: int

    def __call__(self, z: Grid, key: jax.Array | None) -> tuple[Grid, Int[Array, "B h w"], Float[Array, "B"]]:
        """The codes' vectors with straight-through gradients; the codes; each example's loss."""
        ...

    def look_up(self, codes: Int[Array, "B h w"]) -> Grid:
        """The vectors of codes."""
        ...


@chz.chz
class Quantizer(abc.ABC):
    """Configuration of a quantizer."""

    @abc.abstractmethod
    def build(self, rules: Rules, rngs: nnx.Rngs) -> QuantizerModule:
        """Builds the quantizer."""


@chz.chz
class Codebook(Quantizer):
    """The nearest of learned unit vectors e (van den Oord et al. 2017; ViT-VQGAN, Yu et al. 2022).

    Its loss is |e - sg(z)|^2 + commitment |z - sg(e)|^2, per number. There are no moving averages: in training, codes
    that are nearest to no vector of the batch are moved, by revival |e - sg(z')|^2, towards random vectors z' of it.
    """

    size: int = chz.field(default=512, doc="codes")
    width: int = chz.field(default=16, doc="numbers of a code's vector")
    commitment: float = chz.field(default=0.25, doc="weight of the commitment loss")
    revival: float = chz.field(default=1.0, doc="weight of the loss that moves unused codes to vectors of the batch")

    @chz.validate
    def _possible(self) -> None:
        if self.size < 2 or self.width < 1 or min(self.commitment, self.revival) < 0:
            raise ValueError(f"a codebook needs size >= 2, width >= 1 and weights that are not negative: {self}")

    def build(self, rules: Rules, rngs: nnx.Rngs) -> "CodebookModule":
        return CodebookModule(self, rules, rngs)


class CodebookModule(nnx.Module):
    """See `Codebook`. Distances are computed in float32."""

    def __init__(self, config: Codebook, rules: Rules, rngs: nnx.Rngs):
        self.size, self.width = config.size, config.width
        init = jax.nn.initializers.normal(1.0)
        self.table = make_parameter(init, (config.size, config.width), (None, None), rules=rules, rngs=rngs)
        self.commitment, self.revival, self.rules = config.commitment, config.revival, rules

    def __call__(self, z: Grid, key: jax.Array | None) -> tuple[Grid, Int[Array, "B h w"], Float[Array, "B"]]:
        unit, vectors = unit_norm(z.astype(jnp.float32), EPSILON), self._vectors()
        codes = jnp.einsum("bhwz,kz->bhwk", unit, vectors).argmax(-1)
        chosen = self.look_up(codes)
        moved = jnp.square(chosen - jax.lax.stop_gradient(unit)).mean((1, 2, 3))
        kept = jnp.square(unit - jax.lax.stop_gradient(chosen)).mean((1, 2, 3))
        cost = moved + self.commitment * kept
        if key is not None and self.revival:
            cost = cost + self.revival * self._revive(jax.lax.stop_gradient(unit), codes, vectors, key)
        return (unit + jax.lax.stop_gradient(chosen - unit)).astype(z.dtype), codes, cost

    def look_up(self, codes: Int[Array, "B h w"]) -> Grid:
        return look_up(self._vectors(), codes, self.rules)

    def _vectors(self) -> Float[Array, "K Z"]:
        return unit_norm(self.table[...], EPSILON)

    def _revive(self, unit: Grid, codes: Array, vectors: Float[Array, "K Z"], key: jax.Array) -> Float[Array, ""]:
        """The mean over codes of the distance of unused ones from random vectors of the batch."""
        used = jax.nn.one_hot(codes, self.size).sum((0, 1, 2)) > 0
        example_key, row_key, column_key = jax.random.split(key, 3)
        count, rows, columns, _ = unit.shape
        picks = (
            jax.nn.one_hot(jax.random.randint(pick_key, (self.size,), 0, size), size)
            for pick_key, size in ((example_key, count), (row_key, rows), (column_key, columns))
        )
        examples, picked_rows, picked_columns = picks
        examples = reshard(examples, self.rules.spec(None, "batch"))
        # Each code's own vector of the batch; every device adds what it has of them.
        spec = self.rules.out_sharding(None, None, None, None)
        grids = jnp.einsum("kb,bhwz->khwz", examples, unit, out_sharding=spec)
        drawn = jnp.einsum("khwz,kh,kw->kz", grids, picked_rows, picked_columns)
        return jnp.where(used, 0, jnp.square(vectors - drawn).mean(1)).mean()


@chz.chz
class Fsq(Quantizer):
    """Finite scalar quantization: each number is rounded to one of a few levels (Mentzer et al. 2024)."""

    levels: tuple[int, ...] = chz.field(default=(8, 8, 8), doc="levels of each number; their product is the codes")

    @chz.validate
    def _possible(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"levels={self.levels} must each be at least 3")

    def build(self, rules: Rules, rngs: nnx.Rngs) -> "FsqModule":
        return FsqModule(self.levels)


class FsqModule(nnx.Module):
    """See `Fsq`. A code is the mixed-radix number of the levels, the first number's lowest."""

    def __init__(self, levels: tuple[int, ...]):
        self.levels, self.width, self.size = levels, len(levels), math.prod(levels)

    def __call__(self, z: Grid, key: jax.Array | None) -> tuple[Grid, Int[Array, "B h w"], Float[Array, "B"]]:
        levels = jnp.asarray(self.levels, jnp.float32)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
        # With an even number of levels they are at halves, and zero still maps to the middle.
        bounded = jnp.tanh(z.astype(jnp.float32) + jnp.arctanh(offset / half)) * half - offset
        rounded = jnp.round(bounded)
        codes = jnp.einsum("bhwz,z->bhw", rounded + levels // 2, self._places()).astype(jnp.int32)
        passed = bounded + jax.lax.stop_gradient(rounded - bounded)
        return (passed / (levels // 2)).astype(z.dtype), codes, jnp.zeros_like(z[:, 0, 0, 0], jnp.float32)

    def look_up(self, codes: Int[Array, "B h w"]) -> Grid:
        levels = jnp.asarray(self.levels, jnp.int32)
        digits = codes[..., None] // self._places().astype(jnp.int32) % levels
        return (digits - levels // 2) / (levels // 2)

    def _places(self) -> Float[Array, "Z"]:
        return jnp.cumprod(jnp.asarray((1, *self.levels[:-1]), jnp.float32))
