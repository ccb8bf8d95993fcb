"""One modality at a time changed, and nothing else."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bytes
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.noise import corrupt
from mmjax.evaluation.suites.robustness import Swapped
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import END
from tests.small import FEATURES, make_batch, put


def context(batch_size):
    data = Data(
        source=Scenes(train=4, validation=4, test=7, speech=False),
        inputs={"image": ImageInput(size=16), "text": TextInput(length=80, tokenizer=Bytes())},
    )
    rules = PRESETS["data"]
    sharding = NamedSharding(MeshShape(data=1).build(), rules.spec("batch"))
    return EvalContext(data, "nowhere", "test", batch_size, sharding, rules)


def rows(loader):
    """All examples of a pass, whatever the batches."""
    batches = [loader.batch(step) for step in range(loader.steps)]
    kept = [host.real for host in batches]
    return {
        name: np.concatenate([host.batch.values[name][real] for host, real in zip(batches, kept, strict=True)])
        for name in ("image", "text")
    }


def plain(batch_size):
    return rows(context(batch_size).loader())


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_swapped_modality_is_that_of_another_example(modality):
    before, after = plain(4), rows(Swapped(context(4), modality))
    other = "text" if modality == "image" else "image"
    np.testing.assert_array_equal(after[other], before[other])
    np.testing.assert_array_equal(after[modality], before[modality][(np.arange(7) + 3) % 7])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_batches_of_any_size_hold_the_same(modality):
    few, many = (rows(Swapped(context(size), modality)) for size in (2, 8))
    for name in few:
        np.testing.assert_array_equal(few[name], many[name])


def noised(batch, amounts, number=0, devices=1):
    """The batch's values with noise, on so many devices."""
    rules = PRESETS["data"]
    with jax.set_mesh(MeshShape(data=devices).build()):
        change = jax.jit(functools.partial(corrupt, features=FEATURES, amounts=amounts))
        return jax.device_get(change(put(batch, rules), np.int32(number))).values


def test_noise_is_as_strong_as_the_signal_of_each_example():
    size = 256
    batch = make_batch(size=size, presence=0.9)
    scale = np.linspace(0, 5, size, dtype=np.float32)
    for name in ("image", "speech", "place"):
        batch.values[name] *= scale.reshape(-1, *[1] * (batch.values[name].ndim - 1))
    after = noised(batch, {"image": 2.0, "speech": 1.0, "place": 1.0})
    for name, amount in (("image", 2.0), ("speech", 1.0), ("place", 1.0)):
        real = batch.present[name][:, None] & batch.mask.get(name, np.ones((size, 8), bool))
        change = (after[name] - batch.values[name]).reshape(*real.shape, -1)
        assert not change[~real].any()
        assert not change[0].any()  # nothing varies in it
        deviations = [
            values[there].std() for values, there in zip(batch.values[name], real, strict=True) if there.any()
        ]
        changes = [values[there] for values, there in zip(change, real, strict=True) if there.any()]
        strength = np.concatenate(
            [values.ravel() / max(d, 1e-9) for values, d in zip(changes, deviations, strict=True)]
        )
        assert strength.std() == pytest.approx(amount, rel=0.1)
        assert strength.mean() == pytest.approx(0, abs=0.1)
    assert after["song"] is not batch.values["song"]
    np.testing.assert_array_equal(after["song"], batch.values["song"])


@pytest.mark.parametrize(("amount", "share"), [(1.0, 1 / 2), (3.0, 3 / 4)])
def test_a_share_of_the_words_is_replaced_and_none_by_an_end(amount, share):
    batch = make_batch(size=512, presence=0.9)
    batch.values["text"][:] = np.where(batch.mask["text"], 2, 0)
    text, real = noised(batch, {"text": amount})["text"], batch.mask["text"] & batch.present["text"][:, None]
    assert (text[~real] == batch.values["text"][~real]).all()
    # One of 14 replacements is what was there.
    assert (text[real] != 2).mean() == pytest.approx(share * 13 / 14, abs=0.05)
    assert set(text[real]) == set(range(END + 1, FEATURES["text"].vocabulary))


@pytest.mark.parametrize("name", ["image", "text"])
def test_noise_depends_on_the_example_alone(name):
    """Neither on the number of devices nor on how examples are put into batches."""
    whole = make_batch(size=16)
    expected = noised(whole, {name: 1.0})[name]
    assert len(np.unique(expected - whole.values[name], axis=0)) > 8
    np.testing.assert_array_equal(noised(whole, {name: 1.0, "speech": 1.0}, devices=8)[name], expected)
    parts = [jax.tree.map(lambda array, begin=begin: array[begin : begin + 4], whole) for begin in range(0, 16, 4)]
    found = [noised(part, {name: 1.0}, number, devices=2)[name] for number, part in enumerate(parts)]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_what_another_example_lacks_is_lacking():
    loader = Swapped(context(7), "text")

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
