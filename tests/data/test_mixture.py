"""Mixtures: fields and inputs of their own, batches on any number of processes, tokenizers, and what is refused."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import chz
import jax
import numpy as np
import pytest

from mmjax.config import tree
from mmjax.config.overrides import resolve
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.batching.packing import PackedRows, Packing
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.mixture import Mixture, MixtureSource, MixtureStage
from mmjax.data.sources.base import Source
from mmjax.data.tokenize import Bpe, Bytes
from mmjax.errors import UserError
from tests.data.examples import COUNT, InMemory, arrays, data

SIZE = 8


@chz.chz
class Words(Source):
    """Texts and labels of one letter, in a train split and, for some, in others."""

    letter: str
    count: int = 12
    field: str = "text"
    more: tuple[str, ...] = ("test",)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *self.more) if self.count else self.more

    @property
    def cluster_field(self) -> str | None:
        return "speaker" if self.letter == "a" else None

    def open(self, data_dir: str, split: str) -> "WordRecords":
        return WordRecords(self, split)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return Path(data_dir)


class WordRecords:
    def __init__(self, source: Words, split: str):
        self.source, self.split = source, split
        self.fingerprint = f"{source}/{split}"

    def __len__(self) -> int:
        return self.source.count if self.split == "train" else 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        letter = self.source.letter
        return {self.source.field: f"{letter * 3} {index}", "kind": letter, "speaker": index // 2, "source": "old"}

    def id(self, index: int) -> str:
        return f"{self.split}/{index}"


def mixture(**options) -> Mixture:
    """23 examples with captions, and 9 whose captions are called so and that have no speech."""
    bare = {index: {"speech": "gone", "place": "gone"} for index in range(9)}
    sources = {
        "whole": MixtureSource(source=InMemory(), weight=3),
        "bare": MixtureSource(
            source=InMemory(count=9, broken=bare),
            weight=1,
            fields={"speech": None},
            inputs={"place": None, "label": LabelInput(names=tuple("abcde"))},
        ),
    }
    return Mixture(**({"sources": sources} | options))


def mixed(**options) -> Data:
    return chz.replace(data(), source=mixture(**options))


def plain() -> Data:
    """A mixture of what JSON can hold."""
    sources = {
        "whole": MixtureSource(source=Words(letter="a"), weight=3),
        "bare": MixtureSource(source=Words(letter="b"), weight=1),
    }
    return Data(source=Mixture(sources=sources), inputs={"text": TextInput(length=12)})


def words(**parts) -> Data:
    sources = {name: MixtureSource(**part) if isinstance(part, dict) else part for name, part in parts.items()}
    inputs = {"text": TextInput(length=12, tokenizer=Bpe(vocabulary=270)), "kind": LabelInput()}
    return Data(source=Mixture(sources=sources), inputs=inputs)


def test_a_batch_is_made_of_the_sources_own_examples():
    whole = Loader(mixed(), "", "train", SIZE, seed=7)
    alone = {
        name: Loader(chz.replace(data(), source=part.source), "", "train", 1)
        for name, part in mixture().sources.items()
    }
    plain = {"image": ImageInput(size=8), "speech": SpectrogramInput(seconds=0.1)}
    unaugmented = Loader(chz.replace(mixed(), inputs={**data().inputs, **plain}), "", "train", SIZE, seed=7)
    seen = set()
    for step in range(5):
        host = unaugmented.batch(step)
        assert host.ids == whole.ids(step)
        assert not host.errors
        for row, id in enumerate(host.ids):
            name, _, own = id.partition("/")
            seen.add(name)
            expected = alone[name].batch(int(own.removeprefix("train/")))
            assert expected.ids == (own,)
            absent = {"speech", "place"} if name == "bare" else set()
            for feature, present in host.batch.present.items():
                assert present[row] == (feature not in absent)
                if feature not in absent:
                    value = host.batch.values[feature][row]
                    np.testing.assert_array_equal(value, expected.batch.values[feature][0], err_msg=feature)
    assert seen == {"whole", "bare"}


def test_an_evaluation_sees_each_example_of_each_source_once():
    loader = Loader(mixed(), "", "test", SIZE)
    hosts = list(loader.iterate(0, loader.steps))
    ids = [id for host in hosts for id in host.ids if id]
    assert ids == [f"whole/test/{index}" for index in range(COUNT)] + [f"bare/test/{index}" for index in range(9)]


@pytest.mark.parametrize("processes", [2, 4])
def test_a_batch_does_not_depend_on_the_number_of_processes(processes):
    for step in (0, 3, 10**6):
        whole = Loader(mixed(), "", "train", SIZE, seed=7).batch(step)
        for rows in np.split(np.arange(SIZE), processes):
            part = Loader(mixed(), "", "train", SIZE, seed=7, rows=rows).batch(step)
            assert part.ids == whole.ids
            for name, value in arrays(part).items():
                np.testing.assert_array_equal(value, arrays(whole)[name][rows], err_msg=name)


def test_twenty_stops_on_other_numbers_of_processes_change_no_batch(tmp_path):
    """A staged, packed mixture is read in 21 pieces, each by new loaders of 1, 2 or 4 processes."""
    steps, rng = 40, np.random.default_rng(0)
    lengths = {index: {"caption": "w" * (index % 20 + 1)} for index in range(COUNT)}
    sources = {
        "long": MixtureSource(source=InMemory(broken=lengths), weight=3),
        "short": MixtureSource(source=InMemory(count=9), weight=1),
    }
    stages = (MixtureStage(start=16, weights={"long": 1, "short": 2}), MixtureStage(start=32, weights={"short": 1}))
    packing = Packing(features={"text": PackedRows(length=60)}, window=4, parts=4)
    given = chz.replace(mixed(sources=sources, stages=stages), packing=packing).fit_packing(str(tmp_path), SIZE, steps)

    def read(start: int, stop: int, processes: int) -> list[tuple[tuple[str, ...], list[np.ndarray]]]:
        """The ids of every step, and the arrays of all processes in the order of their rows."""
        found = []
        parts = np.split(np.arange(SIZE), processes)
        loaders = [Loader(given, str(tmp_path), "train", SIZE, seed=7, rows=rows) for rows in parts]
        for hosts in zip(*(loader.iterate(start, stop) for loader in loaders), strict=True):
            assert len({host.ids for host in hosts}) == 1
            leaves = [jax.tree.leaves((host.batch.values, host.batch.present)) for host in hosts]
            found.append((hosts[0].ids, [np.concatenate(arrays) for arrays in zip(*leaves, strict=True)]))
        return found

    stops = [0, *sorted(rng.choice(np.arange(1, steps), 20, replace=False).tolist()), steps]
    pieces = [read(*piece, int(rng.choice([1, 2, 4]))) for piece in itertools.pairwise(stops)]
    resumed, whole = [step for piece in pieces for step in piece], read(0, steps, 1)
    assert [ids for ids, _ in resumed] == [ids for ids, _ in whole]
    for (_, one), (_, other) in zip(resumed, whole, strict=True):
        for array, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_a_source_of_a_later_stage_changes_no_batch_before_it():
    plain, more = mixed(), mixture()
    added = {"new": MixtureSource(source=InMemory(count=5), weight=0), **more.sources}
    staged = mixed(sources=added, stages=(MixtureStage(start=4, weights={"new": 0.5, "bare": 0.5}),))
    one, other = (Loader(each, "", "train", SIZE, seed=7) for each in (plain, staged))
    for step in range(4):
        assert one.ids(step) == other.ids(step)
        for name, value in arrays(one.batch(step)).items():
            np.testing.assert_array_equal(value, arrays(other.batch(step))[name], err_msg=name)
    assert sorted(id.partition("/")[0] for id in other.ids(4)) == ["bare"] * 4 + ["new"] * 4


def test_sources_share_by_size_to_the_power_of_alpha():
    sources = {"large": MixtureSource(source=InMemory(count=64)), "small": MixtureSource(source=InMemory(count=16))}
    for alpha, share in ((None, 0.8), (1, 0.8), (0.5, 2 / 3), (0, 0.5)):
        order = Loader(mixed(sources=sources, alpha=alpha), "", "train", SIZE, seed=7).order
        assert abs(order.metrics(3000)["large/examples"] - 3000 * share) <= 1


def test_raw_examples_name_their_source_and_their_fields():
    source = Mixture(
        sources={
            "a": MixtureSource(source=Words(letter="a")),
            "b": MixtureSource(source=Words(letter="b", field="said"), fields={"text": "said", "kind": None}),
        }
    )
    records = source.open("", "train")
    assert [records.id(index) for index in (0, 11, 12, 23)] == ["a/train/0", "a/train/11", "b/train/0", "b/train/11"]
    assert records[1] == {"text": "aaa 1", "kind": "a", "speaker": 0, "source": "a", "$cluster": "a/0"}
    assert records[14] == {"said": "bbb 2", "text": "bbb 2", "kind": None, "speaker": 1, "source": "b"}
    assert list(records.column("source")) == ["a"] * 12 + ["b"] * 12
    assert list(records.column("text")) == [records[index]["text"] for index in range(24)]
    assert pickle.loads(pickle.dumps(records))[14] == records[14]
    clusters = Data(source=source, inputs={"text": TextInput(length=12)}).clusters("", "train")
    assert len(set(clusters.tolist())) == 6 + 12
    assert clusters[0] == clusters[1] != clusters[2]


def test_tokenizers_and_labels_are_learned_from_all_sources(tmp_path):
    """A source's own input reads the texts by its own field, and gets the same tokenizer."""
    own = {"text": TextInput(length=12, field="said", tokenizer=Bpe(vocabulary=270)), "kind": None}
    two = words(
        a={"source": Words(letter="a")}, b={"source": Words(letter="b", field="said"), "inputs": own}
    ).fit_tokenizers(str(tmp_path))
    tokenizer = two.inputs["text"].tokenizer
    assert two.source.sources["b"].inputs["text"].tokenizer == tokenizer
    assert two.inputs["kind"].names == ("a",)  # the kinds of b are not those of a
    # A text of each letter is shorter than its bytes and its end.
    assert all(len(tokenizer.encode(letter * 3)) < 4 for letter in "ab")
    two.check_fields("")
    host = Loader(two, "", "train", SIZE, seed=1).batch(0)
    assert not host.errors
    texts = {id: two.inputs["text"].decode(ids) for id, ids in zip(host.ids, host.batch.values["text"], strict=True)}
    assert all(text == f"{id[0] * 3} {id.rpartition('/')[2]}" for id, text in texts.items())
    assert {id[0] for id in texts} == {"a", "b"}
    both = words(a={"source": Words(letter="a")}, b={"source": Words(letter="b")}).fit_tokenizers(str(tmp_path))
    assert both.inputs["kind"].names == ("a", "b")


SAID = {"source": Words(letter="b", field="said"), "fields": {"kind": None}}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            SAID,
            "data.inputs.text reads the field text, which no example of the split train of data.source.sources.b has "
            "(they have kind, said, source, speaker); set data.source.sources.b.fields.text to the field that it has "
            "instead, or data.source.sources.b.fields.text=None where it has none",
        ),
        (
            SAID | {"fields": {"text": "speaker"}},
            "data.inputs.text cannot read the field text of b/train/0 in the split train of data.source.sources.b: a "
            "text must be str, not int; correct the data, or set data.source.sources.b.fields.text or "
            "data.source.sources.b.inputs.text",
        ),
        (
            SAID | {"fields": {"txt": "said"}},
            "data.source.sources.b.fields.txt is for a field that no input reads; they read text, kind",
        ),
        (
            SAID | {"inputs": {"txt": None}},
            "data.source.sources.b.inputs.txt is none of data.inputs, which are text, kind",
        ),
        (
            SAID | {"inputs": {"text": TextInput(length=13, field="said")}},
            "data.source.sources.b.inputs.text gives Text(length=13, vocabulary=258), and data.inputs.text gives "
            "Text(length=12, vocabulary=270): they must agree",
        ),
        (
            SAID | {"source": Words(letter="b", count=0), "weight": None},
            None,
        ),
    ],
)
def test_a_source_that_does_not_fit_the_inputs_is_one_sentence(tmp_path, part, reason):
    whole = words(a={"source": Words(letter="a")}, b=part)
    if reason is None:
        whole.fit_tokenizers(str(tmp_path)).check_fields("")
        return
    with pytest.raises(UserError) as caught:
        whole.fit_tokenizers(str(tmp_path)).check_fields("")
    assert str(caught.value) == reason


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    inputs = {"text": TextInput(length=12, tokenizer=Bpe(vocabulary=258))}
    part = MixtureSource(source=Words(letter="a"), inputs={"text": TextInput(length=12, tokenizer=Bytes())})
    with pytest.raises(UserError, match=r"inputs.text.tokenizer must be that of data.inputs.text"):
        Data(source=Mixture(sources={"a": part}), inputs=inputs).fit_tokenizers(str(tmp_path))


def test_a_source_with_other_augmentation_reads_its_own():
    part = mixture().sources["bare"]
    place = {"place": VectorInput(size=2, field="flat")}
    changed = chz.replace(part, inputs={**part.inputs, "image": ImageInput(size=8, field="image"), **place})
    sources = {**mixture().sources, "bare": chz.replace(changed, fields={**changed.fields, "flat": None})}
    loader = Loader(mixed(sources=sources), "", "train", SIZE, seed=7)
    usual = Loader(mixed(), "", "train", SIZE, seed=7)
    for step in range(3):
        one, other = (each.batch(step).batch.values["image"] for each in (loader, usual))
        own = np.array([id.startswith("bare") for id in usual.ids(step)])
        np.testing.assert_array_equal(one[~own], other[~own])
        assert (np.abs(one[own] - other[own]).max((1, 2, 3)) > 0).all()


WORDS = ("source.stages.0=MixtureStage", "source.stages.0.start=5", "source.stages.0.weights.whole=1")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["source.sources.bare.weight=-1"], "source.sources.bare.weight=-1.0: must not be negative"),
        (
            ["source.sources.bare.weight=0", "source.sources.whole.weight=0"],
            "source: the weights must not all be 0",
        ),
        (["source.sources.bare.epochs=0"], "source.sources.bare.epochs=0.0: must be above 0"),
        (["source.sources.bare.weight=None"], "source: give all sources a weight or none of them: whole has one, and"),
        (["source.alpha=0.5"], "source.alpha=0.5: is for sources without weights, and whole has one"),
        ([WORDS[0], WORDS[2], "source.stages.0.start=-1"], "source.stages.0.start=-1: must be 1 or more"),
        ([*WORDS[:2], "source.stages.0.weights.whole=0"], "source.stages.0.weights=whole: weights must not all be 0"),
        (
            [*WORDS[:2], "source.stages.0.weights.whole=-2"],
            "source.stages.0.weights=whole: weights must not be negative, and that",
        ),
        ([*WORDS, "source.stages.0.weights.other=1"], "source: stages.0.weights names other, and the sources are"),
        (
            [*WORDS, *(word.replace(".0", ".1") for word in WORDS)],
            "source: stages.1.start=5 must be more than that before, 5",
        ),
        (
            ["source.sources.bare=None", "source.sources.whole=None"],
            "source.sources=whole,bare: sources must not be empty",
        ),
        (["source.sources.bare.source=Mixture"], "source.sources.bare.source.sources=(): sources must not"),
        (["source.sources.new=MixtureSource", "source.sources.new=MixtureSource"], "source.sources.new is given twice"),
    ],
)
def test_requests_that_make_no_sense(keys, reason):
    with pytest.raises(UserError) as caught:
        resolve(plain(), keys)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_a_mixture_of_mixtures_is_refused():
    with pytest.raises(ValueError, match="source must not be a Mixture"):
        MixtureSource(source=mixture())


def test_a_weight_of_a_source_without_train_examples_is_one_sentence():
    part = MixtureSource(source=Words(letter="b", count=0), weight=1)
    source = Mixture(sources={"a": MixtureSource(source=Words(letter="a"), weight=1), "b": part})
    loader = Loader(Data(source=source, inputs={"text": TextInput(length=12)}), "", "train", SIZE, seed=0)
    with pytest.raises(
        UserError, match=r"^data.source.sources.b has no train examples to read from step 0 on: set its"
    ):
        loader.ids(0)
    assert source.splits == ("train", "test")
    assert len(source.open("", "test")) == 6


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        ({}, 0, None),
        ({"stages": (MixtureStage(start=9, weights={"bare": 1.0}),)}, 9, None),
        ({"stages": (MixtureStage(start=9, weights={"bare": 1.0}),)}, 10, "data.source.stages may change from"),
        ({"alpha": 0.5}, 0, "a run goes on with new sources and stages only"),
        ({"sources": {"new": MixtureSource(source=InMemory(), weight=0.0)}}, 9, None),
        (
            {"sources": {"new": MixtureSource(source=InMemory(), weight=0.5)}},
            9,
            "data.source.sources.new.weight must be 0",
        ),
        ({"sources": {"new": MixtureSource(source=InMemory(), weight=0.5)}}, 0, None),
        ({"sources": {"bare": None}}, 9, "a run goes on with new sources and stages only"),
        ({"sources": {"bare": MixtureSource(source=InMemory(), weight=1.0)}}, 9, "a run goes on with new sources"),
    ],
)
def test_what_a_run_that_has_begun_may_change(change, step, reason):
    old = mixture()
    if "alpha" in change:
        old = chz.replace(old, sources={"whole": MixtureSource(source=InMemory())})
    sources = {**old.sources, **change.get("sources", {})}
    found = chz.replace(old, **(change | {"sources": sources})).changed(old, step)
    assert found is None if reason is None else str(found).startswith(reason)


def test_a_mixture_is_read_back_from_json():
    given = chz.replace(plain().source, stages=(MixtureStage(start=4, weights={"bare": 1.0}),))
    draft = tree.tree_of_value(given, "", Source, "given", final=True)
    assert tree.tree_of_json(draft.data(), "", Source, "file").make() == given
