"""Batches as a function of (seed, step): order, layouts, resuming, evaluation."""

import chz
import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.batching.host_batch import chain_digest
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data, Loader
from mmjax.data.tokenize import Bpe
from mmjax.errors import UserError
from tests.data.examples import COUNT, SIZE, InMemory, Memory, arrays, assert_same, data, loader


def test_a_batch_does_not_depend_on_the_layout():
    """One process with all rows, two with four each, three with whatever rows."""
    for step in (0, 2, 5):
        whole = loader().batch(step)
        for layout in ([range(4), range(4, 8)], [[0, 3], [1, 2, 7], [4, 5, 6]]):
            for rows in layout:
                part = loader(rows=list(rows)).batch(step)
                assert part.ids == whole.ids
                for name, value in arrays(part).items():
                    np.testing.assert_array_equal(value, arrays(whole)[name][list(rows)], err_msg=name)


def test_a_batch_does_not_depend_on_what_was_read_before():
    first = loader()
    before = [first.batch(step) for step in range(4)]
    assert_same(loader().batch(3), before[3])
    assert_same(first.batch(1), before[1])


def test_the_seed_decides():
    assert loader(seed=7).ids(0) != loader(seed=8).ids(0)
    one, other = loader(seed=7), loader(seed=8)
    epochs = [[one.ids(step) for step in range(12)], [other.ids(step) for step in range(12)]]
    assert not set(epochs[0]) & set(epochs[1])  # nor does a neighbouring seed see the same epochs shifted


def test_augmentation_belongs_to_the_position():
    """The same example is changed differently in the next epoch; another input beside it changes nothing, and is not
    changed alike."""
    source = loader(count=4, batch_size=4)
    first, second = source.batch(0), source.batch(1)
    assert sorted(first.ids) == sorted(second.ids)
    order = [second.ids.index(id) for id in first.ids]
    assert np.abs(first.batch.values["image"] - second.batch.values["image"][order]).max() > 0.1
    np.testing.assert_array_equal(first.batch.values["label"], second.batch.values["label"][order])
    whole = data()
    fewer = chz.replace(whole, inputs={"speech": whole.inputs["speech"]})
    alone, beside = (Loader(each, "", "train", SIZE, seed=7).batch(1) for each in (fewer, whole))
    np.testing.assert_array_equal(alone.batch.values["speech"], beside.batch.values["speech"])
    picture = chz.replace(whole.inputs["image"], field="image")
    twice = chz.replace(whole, inputs={"image": picture, "again": picture})
    values = Loader(twice, "", "train", SIZE, seed=7).batch(1).batch.values
    assert np.abs(values["image"] - values["again"]).max() > 0.1


@pytest.mark.parametrize("batch_size", [8, 23, 50])
def test_each_epoch_has_every_example_once(batch_size):
    source = loader(batch_size=batch_size)
    ids = [id for step in range(-(-4 * COUNT // batch_size)) for id in source.ids(step)]
    epochs = [tuple(ids[start : start + COUNT]) for start in range(0, 4 * COUNT, COUNT)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"train/{index}" for index in range(COUNT))
    assert len(set(epochs)) == 4


def test_ids_are_those_of_what_is_loaded():
    source = loader()
    for step in range(5):
        host = source.batch(step)
        assert host.ids == source.ids(step)
        numbers = [int(id.split("/")[1]) for id in host.ids]
        np.testing.assert_array_equal(host.batch.values["place"][:, 0], np.stack([numbers, np.negative(numbers)], 1))
        texts = [source.data.inputs["text"].decode(ids) for ids in host.batch.values["text"]]
        assert texts == [f"example number {number}" for number in numbers]


def test_ids_read_nothing(monkeypatch):
    def refuse(self, index):
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(Memory, "__getitem__", refuse)
    assert len(loader().ids(3)) == SIZE


def test_the_chain_of_digests():
    first = chain_digest("", ["train/1", "train/2"])
    assert first == chain_digest("", ("train/1", "train/2"))
    assert len(first) == 64
    others = [
        chain_digest("", ["train/2", "train/1"]),
        chain_digest("", ["train/1train/2"]),
        chain_digest(first, []),
        chain_digest(first, ["train/1"]),
        chain_digest("", ["train/1"]),
    ]
    assert len({first, *others}) == 6


@pytest.mark.parametrize("batch_size", [1, 5, 8, 23, 40])
def test_an_evaluation_sees_each_example_once(batch_size):
    source = loader(seed=None, batch_size=batch_size)
    hosts = list(source.iterate(0, source.steps))
    assert sum(host.real.sum() for host in hosts) == COUNT
    ids = [id for host in hosts for id in host.ids]
    assert ids == [f"train/{index}" for index in range(COUNT)] + [""] * (len(hosts) * batch_size - COUNT)
    for host in hosts:
        np.testing.assert_array_equal(host.real, [bool(id) for id in host.ids])
        for present in host.batch.present.values():
            np.testing.assert_array_equal(present, host.real)
    assert not any(value[~host.real].any() for host in hosts for value in arrays(host).values())


def test_an_evaluation_is_not_augmented():
    whole = data()
    plain = {"image": ImageInput(size=8), "speech": SpectrogramInput(seconds=0.1)}
    for name, value in plain.items():
        expected = Loader(chz.replace(whole, inputs={name: value}), "", "train", SIZE).batch(1)
        np.testing.assert_array_equal(loader(seed=None).batch(1).batch.values[name], expected.batch.values[name])


def test_an_evaluation_of_some_examples():
    source = loader(seed=None, examples=10)
    ids = [id for step in range(source.steps) for id in source.ids(step) if id]
    assert len(set(ids)) == source.examples == 10
    numbers = [int(id.split("/")[1]) for id in ids]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert numbers[-1] >= COUNT - 3
    assert loader(seed=None, examples=100).examples == COUNT


def test_a_tokenizer_is_bound_and_kept_with_the_run(tmp_path):
    inputs = {"text": TextInput(field="caption", length=12, tokenizer=Bpe(vocabulary=280))}
    plain = Data(source=InMemory(), inputs=inputs)
    bound = plain.fit_tokenizers(str(tmp_path / "cache"))
    assert plain.features == bound.features
    host = Loader(bound, str(tmp_path), "train", COUNT).batch(0)
    texts = [bound.inputs["text"].decode(ids) for ids in host.batch.values["text"]]
    assert texts == [f"example number {index}" for index in range(COUNT)]
    bound.save(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "tokenizers").iterdir()] == ["text.json"]
    again = plain.fit_tokenizers(str(tmp_path / "elsewhere"), tmp_path / "run")
    assert not (tmp_path / "elsewhere").exists()
    again.save(tmp_path / "run")
    np.testing.assert_array_equal(
        Loader(again, "", "train", COUNT).batch(0).batch.values["text"], host.batch.values["text"]
    )


def test_requests_that_make_no_sense():
    for setting in ({"threads": -1}, {"max_bad_share": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must"):
            data(**setting)
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        loader(batch_size=0)
    with pytest.raises(UserError, match="no split 'validation': the source has train, test"):
        Loader(data(), "", "validation", 8).ids(0)
    with pytest.raises(UserError, match="no examples"):
        loader(count=0).ids(0)
