"""Alignments against all there are, their edges, and durations spelled out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.alignment import durations_to_alignment, monotonic_align
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

FRAMES, TOKENS = 7, 5
RULES = PRESETS["data"]
find = jax.jit(monotonic_align)


def cases():
    """Random scores of eight examples, and how many frames and tokens each has; nonsense where nothing is real."""
    rng = np.random.default_rng(0)
    lengths = [(7, 5), (7, 1), (5, 5), (1, 1), (6, 3), (3, 5), (0, 4), (4, 0)]
    scores = rng.normal(size=(len(lengths), FRAMES, TOKENS)).astype(np.float32)
    frames = np.array([np.arange(FRAMES) < t for t, _ in lengths])
    tokens = np.array([np.arange(TOKENS) < n for _, n in lengths])
    nonsense = rng.choice([np.nan, np.inf, -np.inf, 1e30], scores.shape)
    return lengths, np.where(frames[:, :, None] & tokens[:, None], scores, nonsense), frames, tokens


def every(frames, tokens):
    """All alignments of so many frames with so many tokens, each as the token of every frame."""
    for moves in itertools.combinations(range(1, frames), tokens - 1):
        yield np.searchsorted(moves, np.arange(frames), side="right")


def test_no_alignment_scores_more():
    lengths, scores, frames, tokens = cases()
    path = np.asarray(find(scores, frames, tokens))
    for example, (t, n) in enumerate(lengths):
        n = min(t, n)
        assert path[example].sum() == (t if n else 0)
        if not n:
            continue
        totals = {tuple(way): scores[example, np.arange(t), way].sum() for way in every(t, n)}
        assert tuple(path[example, :t].argmax(1)) == max(totals, key=totals.get)


def test_only_the_best_of_equals_need_be_told():
    """With the same score everywhere any alignment is best; what is found is one."""
    ones = np.ones((1, FRAMES), bool), np.ones((1, TOKENS), bool)
    path = np.asarray(find(np.zeros((1, FRAMES, TOKENS), np.float32), *ones))[0]
    assert tuple(path.argmax(1)) in {tuple(way) for way in every(FRAMES, TOKENS)}


def test_no_gradient_passes():
    _, scores, frames, tokens = cases()
    gradient = jax.grad(lambda scores: jnp.where(find(scores, frames, tokens), scores, 0).sum())(jnp.asarray(scores))
    np.testing.assert_array_equal(gradient, find(scores, frames, tokens))


def test_the_same_over_eight_devices():
    _, scores, frames, tokens = cases()
    with jax.set_mesh(MeshShape(data=8).build()):
        placed = jax.device_put((scores, frames, tokens), RULES.spec("batch"))
        path = find(*placed)
        assert jax.typeof(path).sharding.spec[0] == RULES.spec("batch")[0]
        np.testing.assert_array_equal(path, find(scores, frames, tokens))


@pytest.mark.parametrize("frames", [4, 8])
def test_durations_spelled_out(frames):
    durations = np.array([[2, 0, 3], [1, 1, 1], [0, 0, 0], [9, 1, 1]])
    found = np.asarray(durations_to_alignment(jnp.asarray(durations), frames))
    for row, lasting in zip(found, durations, strict=True):
        said = np.repeat(np.arange(3), lasting)[:frames]
        assert row[: len(said)].argmax(1).tolist() == said.tolist()
        assert row.sum() == len(said)


def test_an_alignment_is_that_of_its_durations():
    _, scores, frames, tokens = cases()
    path = np.asarray(find(scores, frames, tokens))
    np.testing.assert_array_equal(durations_to_alignment(jnp.asarray(path.sum(1)), FRAMES), path)
