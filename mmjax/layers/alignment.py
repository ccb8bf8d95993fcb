"""Monotonic alignments of frames with tokens, searched by score or given by durations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def monotonic_align(
    scores: Float[Array, "B T N"], frame_mask: Bool[Array, "B T"], token_mask: Bool[Array, "B N"]
) -> Bool[Array, "B T N"]:
    """The token of every real frame in the monotonic alignment with the highest total score.

    Monotonic alignment search (Kim et al. 2020, algorithm 1). The path starts at the first token, stays or moves on to
    the next token at each frame, and ends at the last one; with fewer frames than tokens, at the T-th. Masked frames
    and tokens come last, and their scores are ignored. No gradient passes.
    """
    order = jnp.arange(scores.shape[2])
    # Frame t can have reached token t at most.
    reachable = order <= jnp.arange(scores.shape[1])[:, None]
    scores = jnp.where(reachable, jax.lax.stop_gradient(scores).astype(jnp.float32), -jnp.inf)

    def forward(best: Float[Array, "B N"], score: Float[Array, "B N"]) -> tuple[Array, Array]:
        """The best sum up to each token, and whether its path moved on from the previous token."""
        before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        return jnp.maximum(best, before) + score, before > best

    start = jnp.where(order == 0, 0.0, -jnp.inf) + jnp.zeros_like(scores[:, 0])
    _, moved = jax.lax.scan(forward, start, jnp.swapaxes(scores, 0, 1))

    def backward(here: Bool[Array, "B N"], frame: tuple[Array, Array]) -> tuple[Array, Array]:
        """The token of the previous frame, and of this one."""
        moved, real = frame
        move = (here & moved & real[:, None]).any(1, keepdims=True)
        return jnp.where(move, jnp.pad(here[:, 1:], ((0, 0), (0, 1))), here), here & real[:, None]

    last = jnp.minimum(frame_mask.sum(1), token_mask.sum(1)) - 1
    _, path = jax.lax.scan(backward, order == last[:, None], (moved, jnp.swapaxes(frame_mask, 0, 1)), reverse=True)
    return jnp.swapaxes(path, 0, 1)


def durations_to_alignment(durations: Int[Array, "B N"], frames: int) -> Bool[Array, "B T N"]:
    """The token of each of T frames: each token is repeated for its duration (Ren et al. 2019).

    Frames after the end of the last token have none.
    """
    ends = jnp.cumsum(durations, 1)[:, None]
    place = jnp.arange(frames)[:, None]
    return (place < ends) & (place >= ends - durations[:, None])
