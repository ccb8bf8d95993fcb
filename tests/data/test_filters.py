"""Filters: which examples they keep, the index that is made once, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest

from launch import prepare
from mmjax.config.overrides import resolve
from mmjax.data.filters import Condition, Filtered
from mmjax.data.formats.array_record import ArrayRecord
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.splits import SplitByColumn
from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data, Loader
from mmjax.data.mixture import Mixture, MixtureSource
from mmjax.data.sources.base import Recording, Source, Unreadable
from mmjax.errors import UserError
from tests.data.examples import InMemory, Memory

ROWS = [
    {"text": "a cat", "tags": ["animal", "pet"], "score": 0.5, "kind": 1},
    {"text": "a dog and a cat", "tags": ["animal"], "score": 2, "kind": 2},
    {"text": "the sea", "tags": [], "score": None, "kind": 2},
    {"text": None, "tags": ["animal", "wild", "large"], "score": -1.5, "kind": 3},
    {"text": "Cats", "score": float("nan"), "kind": 1},
]


@chz.chz
class Rows(Source):
    """The rows above, without columns that could be read alone."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def open(self, data_dir: str, split: str) -> "RowRecords":
        return RowRecords()

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return Path(data_dir)


class RowRecords:
    fingerprint = "rows"

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index]

    def id(self, index: int) -> str:
        return f"train/{index}"


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"text": Condition(matches="cat")}, [0, 1]),
        ({"text": Condition(matches="(?i)^cat|sea$")}, [2, 4]),
        ({"text": Condition(shortest=5, longest=7)}, [0, 2]),
        ({"text": Condition(longest=4)}, [4]),
        ({"tags": Condition(shortest=1)}, [0, 1, 3]),
        ({"tags": Condition(longest=2)}, [0, 1, 2]),
        ({"tags": Condition(one_of=("animal", "pet"))}, [0, 1, 2]),
        ({"score": Condition(minimum=0.5)}, [0, 1]),
        ({"score": Condition(maximum=0.5)}, [0, 3]),
        ({"score": Condition(minimum=-2.0, maximum=0.0)}, [3]),
        ({"score": Condition(present=True)}, [0, 1, 3]),
        ({"score": Condition(present=False)}, [2, 4]),
        ({"kind": Condition(one_of=(1, 3))}, [0, 3, 4]),
        ({"kind": Condition(one_of=(2,)), "text": Condition(matches="cat")}, [1]),
        ({"tags": Condition(present=False), "kind": Condition(minimum=1.0)}, [4]),
    ],
)
def test_what_is_kept(tmp_path, where, kept):
    """The same of a source that reads columns alone, and of one that does not."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in ROWS).replace("NaN", "null"))
    manifest = Manifest(path=str(path), split=SplitByColumn(column="split", validation=None, test=None))
    for source in (Rows(), manifest):
        whole, found = (
            source.open(str(tmp_path), "train"),
            Filtered(source=source, where=where).open(str(tmp_path), "train"),
        )
        assert [found.id(index) for index in range(len(found))] == [whole.id(index) for index in kept]
        assert repr([found[index] for index in range(len(found))]) == repr([whole[index] for index in kept])
        assert repr(list(found.column("text"))) == repr([ROWS[index]["text"] for index in kept])
        assert pickle.loads(pickle.dumps(found)).id(0) == found.id(0)


def test_arrays_and_what_cannot_be_read():
    assert Condition(minimum=2.0).holds(np.float32(2))
    assert not Condition(minimum=2.0).holds(np.array([1, 3]))
    assert Condition(shortest=2).holds(np.array([1, 3]))
    assert Condition(one_of=("a",)).holds(b"a")
    assert not Condition(present=True).holds(Unreadable("torn"))
    assert Condition(present=False).holds(Unreadable("torn"))
    assert Condition(present=True).holds(Recording(np.zeros(3, np.int16), 8000))


def test_an_index_is_made_once_for_a_source_and_its_conditions(tmp_path, monkeypatch):
    source = Filtered(source=InMemory(), where={"label": Condition(one_of=(1, 4))})
    first = source.open(str(tmp_path), "train")
    assert [first[index]["label"] for index in range(len(first))] == [1, 4] * 4 + [1]
    made = list((tmp_path / "indexes").iterdir())
    assert len(made) == 1
    before = made[0].joinpath("kept.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "__getitem__", lambda *_: pytest.fail("nothing is to be read"))
        again = source.open(str(tmp_path), "train")
    assert len(again) == len(first)
    assert again.fingerprint == first.fingerprint
    assert made[0].joinpath("kept.npy").stat().st_mtime_ns == before
    others = [
        chz.replace(source, where={"label": Condition(one_of=(1,))}).open(str(tmp_path), "train"),
        source.open(str(tmp_path), "test"),
    ]
    assert len({first.fingerprint, *(each.fingerprint for each in others)}) == 3
    assert len(list((tmp_path / "indexes").iterdir())) == 3
    monkeypatch.setattr(Memory, "fingerprint", "changed")
    assert source.open(str(tmp_path), "train").fingerprint != first.fingerprint
    made[0].joinpath("kept.npy").write_bytes(b"torn")
    monkeypatch.setattr(Memory, "fingerprint", "memory")
    with pytest.raises(UserError, match=r"kept.npy cannot be read"):
        source.open(str(tmp_path), "train")


def test_an_index_that_was_interrupted_is_not_there(tmp_path, monkeypatch):
    source = Filtered(source=InMemory(), where={"label": Condition(one_of=(1, 4))})
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda path, _: Path(path).write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            source.open(str(tmp_path), "train")
    assert list((tmp_path / "indexes").iterdir()) == []
    assert len(source.open(str(tmp_path), "train")) == 9


def test_a_filtered_source_of_a_mixture(tmp_path):
    few = Filtered(source=InMemory(), where={"label": Condition(one_of=(2,))})
    source = Mixture(sources={"all": MixtureSource(source=InMemory()), "few": MixtureSource(source=few)})
    data = Data(source=source, inputs={"text": TextInput(length=24, field="caption")})
    loader = Loader(data, str(tmp_path), "train", 8, seed=0)
    ids = {id for step in range(8) for id in loader.ids(step)}
    assert {id for id in ids if id.startswith("few")} == {f"few/train/{index}" for index in range(2, 23, 5)}
    few = chz.replace(few, where={"label": Condition(one_of=(7,))})
    with pytest.raises(
        UserError, match=r"^data.source.sources.few: where.label of a Filtered source keeps none of the 23"
    ):
        Mixture(sources={"few": MixtureSource(source=few)}).open(str(tmp_path), "train")


def test_a_filtered_source_is_converted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {index}", "n": index}) + "\n" for index in range(100)))
    words = ("source=Filtered", "source.source=Manifest", f"source.source.path={path}", f"out={tmp_path / 'out'}")
    where = ("source.where.n=Condition", "source.where.n.minimum=20", f"data_dir={tmp_path / 'data'}")
    assert prepare.main(["convert", str(path), *words, *where]) == 0
    copy = ArrayRecord(path=str(tmp_path / "out"))
    found = [each[index] for split in copy.splits for each in [copy.open("", split)] for index in range(len(each))]
    assert sorted(row["n"] for row in found) == [*range(20, 100)]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["where.text=None"], "where=(): where must not be empty: "),
        (["where.text.matches=(cat"], "where.text.matches=(cat: is not a regular expression: missing ), unterminated"),
        (["where.text.matches=None"], "where.text: give one of one_of, minimum, maximum, shortest, longest, matches"),
        (["where.text.minimum=3", "where.text.maximum=2"], "where.text.minimum=3.0: must not be above maximum=2.0"),
        (["where.text.shortest=3", "where.text.longest=2"], "where.text.shortest=3: must not be above longest=2"),
        (["where.text.present=false"], "where.text.present=false: leaves nothing for other conditions to hold of"),
        (
            ["source=Mixture", "source.sources.a=MixtureSource", "source.sources.a.source=Interactions"],
            "source=Mixture: ",
        ),
    ],
)
def test_conditions_that_make_no_sense(keys, reason):
    with pytest.raises(UserError) as caught:
        resolve(Filtered(source=Rows(), where={"text": Condition(matches="cat")}), keys)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (
            {"text": Condition(matches="whale")},
            "where.text of a Filtered source keeps none of the 5 examples of the split train; the first, train/0, has "
            "text, tags, score, kind: change the conditions",
        ),
        (
            {"text": Condition(minimum=1.0)},
            "where.text of a Filtered source cannot be applied to train/0, whose text is not a number: change the "
            "condition",
        ),
        (
            {"kind": Condition(matches="1")},
            "where.kind of a Filtered source cannot be applied to train/0, whose kind is not a text: change the "
            "condition",
        ),
        (
            {"kind": Condition(longest=1)},
            "where.kind of a Filtered source cannot be applied to train/0, whose kind has no length: change the "
            "condition",
        ),
    ],
)
def test_conditions_that_do_not_fit_the_examples_are_one_sentence(tmp_path, where, reason):
    with pytest.raises(UserError) as caught:
        Filtered(source=Rows(), where=where).open(str(tmp_path), "train")
    assert str(caught.value) == reason
    assert list((tmp_path / "indexes").iterdir()) == []
