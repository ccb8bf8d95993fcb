"""Fusions of one vector per modality against plain NumPy in float64."""

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.fusion import AttentionPool, Bilinear, Concat, Film, Gated, Late, LowRankTensor, Max, Mean, Sum, WeightedSum
from mmjax.fusion.bilinear import count_sketch
from tests import reference
from tests.fusion.streams import WIDTH, build, close, make_streams, run
from tests.reference import wide

MODALITIES = ("image", "speech", "text")


@pytest.fixture(scope="module")
def streams():
    return make_streams(MODALITIES)


@pytest.fixture(scope="module")
def means(streams):
    """[B M D], zero where a modality is absent, and which are there."""
    there = np.stack([np.asarray(streams[name].mask).any(1) for name in MODALITIES], 1)
    assert there[0].all()
    assert 0 < there[1].sum() < 3
    assert not there[2].any()
    parts = [
        reference.masked_mean(np.asarray(streams[name].values, np.float64), np.asarray(streams[name].mask))
        for name in MODALITIES
    ]
    return np.stack(parts, 1), there


def check(config, streams, expected):
    """Expected: from the module, the means of one example's modalities and which are there, its summary."""
    fusion = build(config, MODALITIES)
    tokens, pooled = run(fusion, streams)
    close(tokens.values[:, 0], pooled)
    np.testing.assert_array_equal(tokens.mask, [[True], [True], [False], [True]])
    close(pooled, expected(fusion))


def weigh(scores, means, there):
    """Of every example the mean under the softmax of the scores that are there."""
    result = np.zeros(means[:, 0].shape)
    for b in range(len(means)):
        if there[b].any():
            result[b] = reference.softmax(scores[b][there[b]]) @ means[b][there[b]]
    return result


def test_sum_mean_and_max(streams, means):
    h, there = means
    some = there.any(1)[:, None]
    check(Sum(), streams, lambda _: h.sum(1))
    check(Mean(), streams, lambda _: np.divide(h.sum(1), there.sum(1)[:, None], where=some, out=np.zeros((4, WIDTH))))
    largest = [rows[real].max(0) if real.any() else np.zeros(WIDTH) for rows, real in zip(h, there, strict=True)]
    check(Max(), streams, lambda _: np.stack(largest))


def test_weighted_sum(streams, means):
    h, there = means
    check(WeightedSum(), streams, lambda fusion: weigh(np.tile(wide(fusion.importance), (4, 1)), h, there))


def test_attention_pool(streams, means):
    h, there = means

    def expected(fusion):
        hidden = np.tanh(reference.linear(fusion.read, h) + wide(fusion.kind))
        return weigh(reference.linear(fusion.score, hidden)[..., 0], h, there)

    check(AttentionPool(), streams, expected)


def test_concat(streams, means):
    h, there = means

    def expected(fusion):
        known = np.where(there[..., None], h, wide(fusion.missing))
        hidden = reference.gelu(reference.linear(fusion.up, known))
        return reference.norm(fusion.norm, reference.linear(fusion.down, hidden))

    check(Concat(hidden=24), streams, expected)


def test_gated(streams, means):
    h, there = means

    def expected(fusion):
        gates = reference.sigmoid(reference.linear(fusion.gates, h))
        values = [np.tanh(reference.linear(value, h[:, m])) for m, value in enumerate(fusion.values)]
        return sum(there[:, m, None] * gates[:, m] * value for m, value in enumerate(values))

    check(Gated(), streams, expected)


@pytest.mark.parametrize("target", [None, "speech"])
def test_film(streams, means, target):
    h, there = means
    place = 0 if target is None else MODALITIES.index(target)

    def expected(fusion):
        known = np.where(there[..., None], h, wide(fusion.missing))
        others = np.delete(known, place, 1)
        x = known[:, place]
        for block in fusion.blocks:
            modulation = reference.linear(block.modulate, others)
            gamma, beta = modulation[:, 0], modulation[:, 1]
            x = x + reference.mlp(block.mlp, reference.norm(block.norm, x) * (1 + gamma) + beta)
        return reference.norm(fusion.norm, x)

    check(Film(target=target), streams, expected)


def test_bilinear_is_the_sketched_outer_product(streams, means):
    """The sketch of an outer product has the place of every product at the sum of its factors' places."""
    h, _ = means
    size = 24
    factors = [np.concatenate([h[:, m], np.ones((4, 1))], 1) for m in range(3)]
    sketches = [count_sketch(m, WIDTH + 1, size) for m in range(3)]
    for matrix in sketches:
        np.testing.assert_array_equal(np.abs(matrix).sum(1), 1)
    places = [np.abs(matrix).argmax(1) for matrix in sketches]
    signs = [matrix.sum(1) for matrix in sketches]
    outer = np.einsum("bi,bj,bk->bijk", *factors)
    sign = np.einsum("i,j,k->ijk", *signs)
    place = (places[0][:, None, None] + places[1][:, None] + places[2]) % size
    product = np.stack([np.bincount(place.ravel(), (sign * row).ravel(), size) for row in outer])
    rooted = np.sign(product) * (np.sqrt(np.abs(product) + 1e-6) - 1e-3)
    check(
        Bilinear(size=size),
        streams,
        lambda fusion: reference.linear(fusion.project, reference.norm(fusion.norm, rooted)),
    )


def test_low_rank_tensor(streams, means):
    """Against the whole tensor: W[i, j, k] = sum over ranks of the outer products of the factors."""
    h, _ = means
    factors = [np.concatenate([h[:, m], np.ones((4, 1))], 1) for m in range(3)]

    def expected(fusion):
        kernels = [np.concatenate([wide(f.kernel), 1 + wide(f.bias)[None]]) for f in fusion.factors]
        tensor = np.einsum("ird,jrd,krd->ijkd", *kernels)
        return reference.norm(fusion.norm, np.einsum("bi,bj,bk,ijkd->bd", *factors, tensor))

    check(LowRankTensor(rank=3), streams, expected)


def test_late_adds_what_every_modality_says(streams, means):
    h, there = means

    def expected(fusion):
        votes = [reference.linear(expert, h[:, m]) for m, expert in enumerate(fusion.experts)]
        return sum(there[:, m, None] * wide(fusion.weights)[m] * vote for m, vote in enumerate(votes))

    check(Late(), streams, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Film(depth=0), "depth must lie between 1 and 100"),
        (lambda: Bilinear(size=0), "size must be 1 or more"),
        (lambda: LowRankTensor(rank=0), "rank must be 1 or more"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_that_is_no_encoder():
    with pytest.raises(UserError, match="target=smell is not among the encoders: image, speech, text"):
        build(Film(target="smell"), MODALITIES)
