"""Which token is heard when: the best monotonic alignment of frames with tokens, and the one that durations give."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def align(
    scores: Float[Array, "B T N"], frames: Bool[Array, "B T"], tokens: Bool[Array, "B N"]
) -> Bool[Array, "B T N"]:
    """The token of every real frame, in the alignment whose scores add up to most (Kim et al. 2020, algorithm 1).

    It begins at the first token, goes from frame to frame on to the next token or stays, and ends at the last one; with
    fewer frames than tokens, at the T-th. Real frames and tokens come before the others, whose scores may be anything.
    No gradient passes.
    """
    order = jnp.arange(scores.shape[2])
    # Frame t can have reached token t at most.
    reachable = order <= jnp.arange(scores.shape[1])[:, None]
    scores = jnp.where(reachable, jax.lax.stop_gradient(scores).astype(jnp.float32), -jnp.inf)

    def forward(best: Float[Array, "B N"], score: Float[Array, "B N"]) -> tuple[Array, Array]:
        """The best sum up to each token, and whether it comes from the token before."""
        before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        return jnp.maximum(best, before) + score, before > best

    start = jnp.where(order == 0, 0.0, -jnp.inf) + jnp.zeros_like(scores[:, 0])
    _, moved = jax.lax.scan(forward, start, jnp.swapaxes(scores, 0, 1))

    def backward(here: Bool[Array, "B N"], frame: tuple[Array, Array]) -> tuple[Array, Array]:
        """The token of the frame before, and of this one."""
        moved, real = frame
        move = (here & moved & real[:, None]).any(1, keepdims=True)
        return jnp.where(move, jnp.pad(here[:, 1:], ((0, 0), (0, 1))), here), here & real[:, None]

    last = jnp.minimum(frames.sum(1), tokens.sum(1)) - 1
    _, path = jax.lax.scan(backward, order == last[:, None], (moved, jnp.swapaxes(frames, 0, 1)), reverse=True)
    return jnp.swapaxes(path, 0, 1)


def regulate(durations: Int[Array, "B N"], frames: int) -> Bool[Array, "B T N"]:
    """The token of each of T frames, one token after the other for as many frames as it lasts (Ren et al. 2019).

    Frames behind the end of the last token have none.
    """
    ends = jnp.cumsum(durations, 1)[:, None]
    place = jnp.arange(frames)[:, None]
    return (place < ends) & (place >= ends - durations[:, None])
