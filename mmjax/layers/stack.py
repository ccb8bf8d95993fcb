"""Stacked blocks, created by vmap and run by scan, with named rematerialisation policies."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from flax import nnx

from mmjax.errors import UserError

Carry = TypeVar("Carry")

# A deeper stack is a mistake, and unrolled it would compile for ever.
MAX_DEPTH = 1000

UNSPLIT = (
    "a batch is not split over the mesh that jax.set_mesh names: give it jax.device_put(batch, rules.spec('batch')), "
    "or set no mesh"
)

Remat = Literal["none", "weights", "dots", "dots_no_batch", "full"]


def _all_but_moved(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether to save a result: everything except gathers of sharded arrays such as weights."""
    return primitive.name != "reshard"


POLICIES: dict[str, Any] = {
    "weights": _all_but_moved,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`depth` blocks applied in sequence, their parameters stacked along a leading layer dimension.

    `remat` says what the backward pass keeps of a block: "none" recomputes nothing, and so keeps the gathered weights
    of all blocks; "weights" gathers them again; "dots" keeps the results of all matrix products, "dots_no_batch" of
    those without batch dimensions (the projections, not the attention matrix), "full" nothing. `unroll` compiles the
    blocks one by one instead of as a loop: faster on a CPU, longer to compile.
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
        if not 1 <= depth <= MAX_DEPTH:
            raise UserError(f"depth={depth} must lie between 1 and {MAX_DEPTH}")
        self.blocks = jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))
        self.depth, self.remat, self.unroll = depth, remat, unroll

    def __call__(self, carry: Carry, *shared: Any, key: jax.Array | None = None) -> tuple[Carry, Carry]:
        """Runs `carry = block(carry, *shared, key)` through all blocks; also returns all results, stacked."""

        def run(carry: Carry, layer: tuple[Any, Any]) -> tuple[Carry, Carry]:
            block, block_key = layer
            carry = block(carry, *shared, block_key)
            return carry, carry

        if self.remat != "none":
            run = jax.checkpoint(run, policy=POLICIES[self.remat], prevent_cse=self.unroll)
        keys = None if key is None else jax.random.split(key, self.depth)
        try:
            return jax.lax.scan(run, carry, (self.blocks, keys), unroll=self.depth if self.unroll else 1)
        except TypeError as error:
            if jax.sharding.get_abstract_mesh().empty or "must have equal types" not in str(error):
                raise
            raise UserError(UNSPLIT) from error

    def scan(
        self, function: Callable[[Any, Carry, Any], tuple[Carry, Any]], carry: Carry, layers: Any = None
    ) -> tuple[Carry, Any]:
        """Scans `carry, result = function(block, carry, layer)` over all blocks; also returns the results.

        `layer` is the block's slice of `layers`, whose leaves have a leading layer dimension.
        """

        def run(carry: Carry, layer: tuple[Any, Any]) -> tuple[Carry, Any]:
            block, own = layer
            return function(block, carry, own)

        return jax.lax.scan(run, carry, (self.blocks, layers), unroll=self.depth if self.unroll else 1)
