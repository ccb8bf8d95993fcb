"""One modality at a time changed, and nothing else."""

import numpy as np
import pytest
from jax.sharding import NamedSharding

from mmjax.data.inputs import Picture, Sentence
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bytes
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.robustness import Changed, noised
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Image, Text


def evaluator(batch_size):
    data = Data(
        source=Scenes(train=4, validation=4, test=7, speech=False),
        inputs={"image": Picture(size=16), "text": Sentence(length=80, tokenizer=Bytes())},
    )
    rules = PRESETS["data"]
    sharding = NamedSharding(MeshShape(data=1).build(), rules.spec("batch"))
    return Evaluator(data, "nowhere", batch_size, sharding=sharding, rules=rules)


def rows(loader):
    """All examples of a pass, whatever the batches."""
    batches = [loader.batch(step) for step in range(loader.steps)]
    kept = [host.real for host in batches]
    return {
        name: np.concatenate([host.batch.values[name][real] for host, real in zip(batches, kept, strict=True)])
        for name in ("image", "text")
    }


def plain(batch_size):
    return rows(evaluator(batch_size).loader("test"))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_swapped_modality_is_that_of_another_example(modality):
    before, after = plain(4), rows(Changed(evaluator(4), "test", modality, "swapped"))
    other = "text" if modality == "image" else "image"
    np.testing.assert_array_equal(after[other], before[other])
    np.testing.assert_array_equal(after[modality], before[modality][(np.arange(7) + 3) % 7])


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("change", ["noised", "swapped"])
def test_batches_of_any_size_hold_the_same(modality, change):
    few, many = (rows(Changed(evaluator(size), "test", modality, change)) for size in (2, 8))
    for name in few:
        np.testing.assert_array_equal(few[name], many[name])


def test_noise_is_as_strong_as_the_signal():
    before, after = plain(4)["image"], rows(Changed(evaluator(4), "test", "image", "noised"))["image"]
    for row in range(7):
        assert (after[row] - before[row]).std() == pytest.approx(before[row].std(), rel=0.1)
    flat = np.full((16, 16, 3), 0.5, np.float32)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(noised(flat, np.ones(flat.shape, bool), Image(16, 16, 3), rng), flat)


def test_half_of_the_words_are_replaced_and_no_padding():
    ids = np.arange(2, 402)
    mask = np.arange(400) < 300
    ids[300:] = 0
    after = noised(ids, mask, Text(400, 1000), np.random.default_rng(0))
    assert (after[300:] == 0).all()
    assert 0.4 < (after[:300] != ids[:300]).mean() < 0.6
    assert after[:300].min() >= 2


def test_what_another_example_lacks_is_lacking():
    loader = Changed(evaluator(7), "test", "text", "swapped")

    class Records:
        fingerprint = "some"

        def __len__(self):
            return 7

        def __getitem__(self, index):
            found = whole[index]
            return found | ({"text": None} if index == 3 else {})

        def id(self, index):
            return f"test/{index}"

    whole = loader.records
    loader.__dict__["records"] = Records()
    host = loader.batch(0)
    assert list(host.batch.present["text"]) == [False, True, True, True, True, True, True]
