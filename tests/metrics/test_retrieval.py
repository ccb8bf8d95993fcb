"""Ranks against a loop that is too slow to be wrong."""

import jax
import numpy as np
import pytest

from mmjax.metrics import retrieval
from mmjax.metrics.retrieval import has_match, ranks, retrieval_metrics, sharded_ranks
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS


def slow_ranks(queries, gallery, query_present, gallery_present, ids) -> list[int]:
    found = []
    for i in range(len(queries)):
        matches = [j for j in range(len(gallery)) if gallery_present[j] and ids[i] == ids[j]]
        if not query_present[i] or not matches:
            continue
        similarity = [float(np.dot(queries[i], gallery[j])) for j in range(len(gallery))]
        best = max(similarity[j] for j in matches)
        others = [j for j in range(len(gallery)) if gallery_present[j] and j not in matches]
        found.append(1 + sum(similarity[j] >= best for j in others))
    return found


def embeddings(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Pairs of small whole numbers, so that products are exact and ties are many."""
    rng = np.random.default_rng(seed)
    first = rng.integers(-2, 3, (count, size)).astype(np.float32)
    return first, first + rng.integers(-1, 2, (count, size)).astype(np.float32), rng


@pytest.mark.parametrize("chunk_elements", [1 << 24, 200])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_the_loop(seed, chunk_elements, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", chunk_elements)
    first, second, rng = embeddings(60, 4, seed)
    there, here = rng.random(60) < 0.8, rng.random(60) < 0.7
    for ids in (np.arange(60), rng.integers(0, 40, 60), [f"a {n} circle" for n in rng.integers(0, 30, 60)]):
        assert list(ranks(first, second, there, here, ids)) == slow_ranks(first, second, there, here, list(ids))
    everywhere = np.ones(60, bool)
    assert list(ranks(first, second)) == slow_ranks(first, second, everywhere, everywhere, range(60))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_ranks_on_a_mesh_are_the_same(devices, monkeypatch):
    monkeypatch.setattr(retrieval, "ROWS", 8)
    first, second, rng = embeddings(75, 4, 5)
    there, here = rng.random(75) < 0.8, rng.random(75) < 0.7
    everywhere = np.ones(75, bool)
    broken = second.copy()
    broken[::7] = np.nan
    same = np.repeat(rng.normal(size=(1, 48)).astype(np.float32), 75, 0)
    with jax.set_mesh(MeshShape(data=devices).build()):
        for pair in ((first, second), (first, broken), (same, same)):
            for masks in ((there, here), (everywhere, everywhere), (there, ~there)):
                for ids in (None, rng.integers(0, 30, 75), [f"a {n} circle" for n in rng.integers(0, 50, 75)]):
                    found = sharded_ranks(*pair, *masks, ids, rules=PRESETS["data"])
                    np.testing.assert_array_equal(found, ranks(*pair, *masks, ids))
                    assert len(found) == has_match(*masks, ids).sum()
                    if np.isfinite(pair).all() and pair[0] is not same:  # a loop over products rounds otherwise
                        names = range(75) if ids is None else ids
                        assert list(found) == slow_ranks(*pair, *masks, names)


def test_metrics_of_a_hand_computed_case():
    # Similarities of image i (row) and text j: image 0 finds its text first, image 1 second, image 2 third.
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0.9, 0.5, 0.8], [0.1, 0.4, 0.7], [0.2, 0.3, 0.6]], np.float32)
    metrics = retrieval_metrics(images, texts, names=("image", "text"))
    assert metrics["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert metrics["image_to_text_recall@5"] == 1
    assert metrics["image_to_text_median_rank"] == 2
    # The other way text 0 is nearest to image 0, text 1 and 2 to image 2.
    assert metrics["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image_median_rank"] == 1
    assert len(metrics) == 8


def test_a_collapsed_model_is_last_and_so_is_a_broken_one():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(1, 48)).astype(np.float32), 1001, 0)
    assert set(ranks(same, same)) == {1001}
    broken = rng.normal(size=(50, 8)).astype(np.float32)
    broken[3] = np.nan
    there = ranks(broken, np.abs(broken))
    assert there[3] == 50
    assert set(ranks(np.full((5, 2), np.nan, np.float32), np.ones((5, 2), np.float32))) == {5}


def test_identical_texts_are_each_others_matches():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(40, 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.repeat(images[::2], 2, 0)  # every two pictures share a sentence, and its embedding
    sentences = [f"sentence {index // 2}" for index in range(40)]
    assert retrieval_metrics(texts, texts, ids=sentences)["first_to_second_recall@1"] == 1
    assert retrieval_metrics(texts, texts)["first_to_second_recall@1"] == 0


def test_nothing_present_gives_nan():
    nothing = np.zeros(3, bool)
    metrics = retrieval_metrics(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32), nothing, nothing)
    assert np.isnan(list(metrics.values())).all()
