"""Depth: blocks of one kind made by vmap and run by scan, rematerialised by a named policy."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from flax import nnx

from mmjax.errors import UserError

Carry = TypeVar("Carry")

# Blocks of the deepest stack: a layer dimension of more is a mistake, and unrolled it would be compiled for ever.
DEEPEST = 1000

Remat = Literal["none", "weights", "dots", "dots_no_batch", "full"]


def _all_but_moved(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether to save a result: anything but what was there and is only gathered from other devices, as weights are."""
    return primitive.name != "reshard"


POLICIES: dict[str, Any] = {
    "weights": _all_but_moved,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`depth` blocks in a row whose parameters lie stacked along a leading layer dimension.

    `remat` says what the backward pass keeps of a block: "none" recomputes nothing, and so keeps the weights of all
    blocks as they were gathered; "weights" gathers them again; "dots" keeps the results of all matrix products,
    "dots_no_batch" of those without batch dimensions (the projections, not the attention matrix), "full" nothing.
    `unroll` compiles the blocks one by one instead of as a loop: faster on a CPU, longer to compile.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        remat: Remat = "none",
        unroll: bool = False,
        rngs: nnx.Rngs,
    ):
        if not 1 <= depth <= DEEPEST:
            raise UserError(f"a depth of {depth} must lie between 1 and {DEEPEST}")
        self.blocks = jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))
        self.depth, self.remat, self.unroll = depth, remat, unroll

    def __call__(self, carry: Carry, *shared: Any, key: jax.Array | None = None) -> tuple[Carry, Carry]:
        """Run `carry = block(carry, *shared, key)` through all blocks; also every block's result, stacked."""

        def run(carry: Carry, layer: tuple[Any, Any]) -> tuple[Carry, Carry]:
            block, block_key = layer
            carry = block(carry, *shared, block_key)
            return carry, carry

        if self.remat != "none":
            run = jax.checkpoint(run, policy=POLICIES[self.remat], prevent_cse=self.unroll)
        keys = None if key is None else jax.random.split(key, self.depth)
        return jax.lax.scan(run, carry, (self.blocks, keys), unroll=self.depth if self.unroll else 1)

    def thread(
        self, function: Callable[[Any, Carry, Any], tuple[Carry, Any]], carry: Carry, layers: Any = None
    ) -> tuple[Carry, Any]:
        """Run `carry, result = function(block, carry, own)` through all blocks; also every block's result, stacked.

        `own` is the block's part of `layers`, whose leaves have a leading layer dimension.
        """

        def run(carry: Carry, layer: tuple[Any, Any]) -> tuple[Carry, Any]:
            block, own = layer
            return function(block, carry, own)

        return jax.lax.scan(run, carry, (self.blocks, layers), unroll=self.depth if self.unroll else 1)
