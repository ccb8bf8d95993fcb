"""Damage in the data: counted, absent and named, too much of it an error; what no input can read is told at once."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.batching.host_batch import BadValueMonitor
from mmjax.data.check import check_inputs
from mmjax.errors import UserError
from tests.data.examples import COUNT, DAMAGE, SIZE, Memory, arrays, data, loader


@pytest.mark.parametrize("seed", [7, None])
def test_damage_is_counted_and_absent_and_the_rest_is_as_it_was(seed):
    whole, damaged = loader(seed=seed), loader(seed=seed, broken=DAMAGE)
    names = {"caption": "text"}
    bad = {(f"train/{index}", names.get(field, field)) for index, fields in DAMAGE.items() for field in fields}
    found = set()
    for step in range(whole.steps):
        clean, host = whole.batch(step), damaged.batch(step)
        assert not clean.errors
        assert clean.ids == host.ids
        found |= {(error.id, error.feature) for error in host.errors}
        for error in host.errors:
            assert error.id == f"train/{error.index}"
            assert error.reason
        for feature, present in host.batch.present.items():
            for row, id in enumerate(host.ids):
                values = {name: array[row] for name, array in arrays(host).items() if name.endswith(f"/{feature}")}
                if not id or (id, feature) in bad:
                    assert not any(value.any() for value in values.values())
                else:
                    assert present[row]
                    for name, value in values.items():
                        np.testing.assert_array_equal(value, arrays(clean)[name][row])
    assert found == bad if seed is None else found <= bad and len(found) > 4


def test_reasons_are_told():
    errors = {error.id: error for error in loader(seed=None, batch_size=COUNT, broken=DAMAGE).batch(0).errors}
    assert "NaN" in errors["train/4"].reason or "not finite" in errors["train/4"].reason
    assert dataclasses.asdict(errors["train/11"]) == {
        "index": 11,
        "id": "train/11",
        "feature": "text",
        "reason": "the field 'caption' is missing",
    }


def test_absence_is_no_error():
    host = loader(seed=None, broken={2: {"speech": None}}).batch(0)
    assert not host.errors
    assert host.batch.present["speech"].tolist() == [True, True, False] + [True] * 5


def test_damage_is_counted():
    tally, source = BadValueMonitor(0.1), loader(broken={0: {"image": b"no picture"}})
    hosts = [source.batch(step) for step in range(40)]
    for host in hosts:
        tally.add(host)
    assert tally.read["image"] == tally.read["label"] == 40 * SIZE
    assert tally.bad == {"image": sum(host.ids.count("train/0") for host in hosts)}


def test_too_much_damage_ends_the_run():
    def run(tally, source):
        for step in range(100):
            tally.add(source.batch(step))

    with pytest.raises(UserError, match=r"26 of .* values of 'image' .* the image is empty.*max_bad_share"):
        run(BadValueMonitor(0.1), loader(broken={index: {"image": b""} for index in range(8)}))
    with pytest.raises(UserError, match="1 of 8 values"):
        BadValueMonitor(0.0).add(loader(seed=None, broken={1: {"label": 77}}).batch(0))


class Damaged(Memory):
    """Examples that cannot be read, as of a damaged file."""

    def __getitem__(self, index):
        raise EOFError(f"record {index}\nends early")


def test_an_example_that_cannot_be_read_is_bad_input():
    source = loader(threads=1)
    source.records = Damaged("train", COUNT, {})
    (host,) = source.iterate(0, 1)
    assert {error.feature for error in host.errors} == set(data().inputs)
    assert len(host.errors) == SIZE * len(data().inputs)
    assert host.errors[0].reason.startswith("the example cannot be read (EOFError: record ")
    assert not any(present.any() for present in host.batch.present.values())
    with pytest.raises(
        UserError, match=r"^the examples of the split train cannot be read: .*EOFError.* prepare the data"
    ):
        check_inputs(data().inputs, source.records, "train")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"label": 1.5},
            "data.inputs.label cannot read the field label of train/0 in the split train: labels must be integers",
        ),
        (
            {"label": "z"},
            "label 'z' is not one of the 5 names, such as a, b, c; correct the data, or set data.inputs.label",
        ),
        (
            {"caption": 7},
            "data.inputs.text cannot read the field caption of train/0 in the split train: a text must be str",
        ),
        (
            {"image": b"no picture"},
            "data.inputs.image cannot read the field image .* not an image that OpenCV can decode",
        ),
        (
            {"caption": "gone"},
            "reads the field caption, which no example of the split train has .they have image, label",
        ),
    ],
)
def test_what_no_input_can_read_is_told_at_once(changes, found):
    source = data(broken=dict.fromkeys(range(COUNT), changes))
    with pytest.raises(UserError, match=found) as caught:
        source.check_fields("")
    assert "\n" not in str(caught.value)


def test_one_value_of_another_kind_is_told_and_one_that_is_damaged_is_not():
    with pytest.raises(UserError, match="the field label of train/5 in the split train"):
        data(broken={5: {"label": 0.0}}).check_fields("")
    data(broken={5: {"label": 99}, 6: {"image": b""}, 7: {"speech": None}}).check_fields("")
    data(broken={index: {"label": "abcde"[index % 5]} for index in range(COUNT)}).check_fields("")
    data(broken={index: {"label": None} for index in range(COUNT)}).check_fields("")


def test_texts_that_are_cut_are_told():
    """Of both splits, every text of a list by itself; what is missing or no text is not counted."""
    broken = {index: {"caption": "x" * length} for index, length in enumerate((23, 24, 200))}
    broken |= {3: {"caption": ["x", "x" * 24, "x" * 30]}, 4: {"caption": None}, 5: {"caption": b"\xff"}}
    texts = 2 * (COUNT - 6 + 3 + 3)
    assert data(broken=broken).check_fields("") == [
        f"text: 8 of {texts} sampled texts are longer than 24 tokens and are cut; "
        "raise data.inputs.text.length to read them whole"
    ]
    assert data(broken={0: {"caption": "x" * 23}}).check_fields("") == []
