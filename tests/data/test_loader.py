"""Batches as a function of (seed, step): order, layouts, resuming, damage, evaluation, prefetching."""

import dataclasses
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chz
import cloudpickle
import cv2
import numpy as np
import pytest

from mmjax.data import prefetch
from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.augment import ImageAugment, SpectrogramAugment
from mmjax.data.check import check_inputs
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import BadValueMonitor, Data, HostBatch, Loader, chain_digest
from mmjax.data.sources.base import Recording, Source
from mmjax.data.tokenize import Bpe
from mmjax.errors import Preempted, UserError

# Worker processes cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

COUNT, SIZE = 23, 8


class Memory:
    """Small examples made from their index; `broken` replaces fields of some, and None there removes one."""

    fingerprint = "memory"

    def __init__(self, split: str, count: int, broken: dict[int, dict[str, Any]]):
        self.split, self.count, self.broken = split, count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        example = {
            "image": cv2.imencode(".png", rng.integers(0, 255, (10, 10, 3), np.uint8))[1].tobytes(),
            "speech": Recording((3000 * rng.standard_normal(800)).astype(np.int16), 8000),
            "caption": f"example number {index}",
            "label": index % 5,
            "place": [[index, -index]],
        }
        return {name: value for name, value in (example | self.broken.get(index, {})).items() if value != "gone"}

    def id(self, index: int) -> str:
        return f"{self.split}/{index}"


@chz.chz
class InMemory(Source):
    count: int = COUNT
    broken: dict = chz.field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def open(self, data_dir: str, split: str) -> Memory:
        return Memory(split, self.count, self.broken)

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return Path(data_dir)


def data(*, broken=None, count=COUNT, **options) -> Data:
    inputs = {
        "image": ImageInput(size=8, augment=ImageAugment(flip=0.5, rotate=20)),
        "speech": SpectrogramInput(seconds=0.1, augment=SpectrogramAugment(gain=3, noise=0.1, time_masks=1)),
        "text": TextInput(field="caption", length=24),
        "label": LabelInput(names=tuple("abcde")),
        "place": VectorInput(size=2),
    }
    return Data(source=InMemory(count=count, broken=broken or {}), inputs=inputs, **options)


def loader(*, seed: int | None = 7, rows=None, examples=None, batch_size=SIZE, **options) -> Loader:
    return Loader(data(**options), "", "train", batch_size, seed=seed, rows=rows, examples=examples)


def arrays(host: HostBatch) -> dict[str, np.ndarray]:
    """Every array of a batch by a readable name."""
    parts = {"values": host.batch.values, "mask": host.batch.mask, "present": host.batch.present}
    return {f"{part}/{name}": value for part, fields in parts.items() for name, value in fields.items()}


def assert_same(one: HostBatch, other: HostBatch) -> None:
    assert (one.step, one.ids, one.errors) == (other.step, other.ids, other.errors)
    assert arrays(one).keys() == arrays(other).keys()
    for name, value in arrays(one).items():
        np.testing.assert_array_equal(value, arrays(other)[name], err_msg=name)


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


PICTURE = Memory("train", 1, {})[0]["image"]
DAMAGE = {
    0: {"image": b"no picture"},
    3: {"image": PICTURE[:-20], "label": 5},
    4: {"speech": Recording(np.full(800, np.nan, np.float32), 8000)},
    9: {"caption": " ", "place": [[np.inf, 0.0]]},
    11: {"speech": Recording(np.zeros(0, np.int16), 8000), "caption": "gone"},
}


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


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2, "prefetch": 3}, {"workers": 2, "threads": 1}])
def test_prefetching_changes_nothing(options):
    source = loader(broken=DAMAGE, **options)
    found = list(source.iterate(3, 9))
    assert [host.step for host in found] == list(range(3, 9))
    for host in found:
        assert_same(host, loader(broken=DAMAGE).batch(host.step))
    assert list(source.iterate(4, 4)) == []


def test_leaving_early_ends_the_threads():
    import threading

    before = set(threading.enumerate())
    batches = loader(threads=2).iterate(0, 10**6, lambda host: host.step)
    assert [next(batches), next(batches)] == [0, 1]
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


READ = """
import multiprocessing
from tests.data.test_loader import loader

batches = loader(workers=2, threads=1).iterate(0, 10**6)
next(batches)
print(len(multiprocessing.active_children()), flush=True)
while True:
    next(batches)
"""


def test_workers_end_with_a_process_that_is_killed():
    reading = subprocess.Popen([sys.executable, "-c", READ], stdout=subprocess.PIPE, text=True)
    assert reading.stdout.readline() == "2\n"
    reading.kill()
    # The workers have the pipe too: it ends when the last of them does.
    assert reading.communicate(timeout=30)[0] == ""


class Large(Memory):
    """Examples whose batches do not fit into a pipe at once: a worker is killed while it writes one."""

    def __getitem__(self, index):
        return {"place": np.zeros((50_000, 2))}


@pytest.mark.parametrize("kind", [Memory, Large])
def test_a_worker_that_is_killed_interrupts_the_run(kind, monkeypatch):
    monkeypatch.setattr(InMemory, "open", lambda self, data_dir, split: kind(split, self.count, self.broken))
    whole = Data(source=InMemory(), inputs={"place": VectorInput(size=2, slots=50_000)}, workers=1, prefetch=1)
    batches = Loader(whole, "", "train", SIZE, seed=7).iterate(0, 10**6, lambda host: host)
    next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # it goes on until nothing more fits
    worker.kill()
    with pytest.raises(Preempted, match=r"a process of the data loader was killed.*the same command resumes"):
        list(batches)
    monkeypatch.setattr(prefetch, "GRACE", 0.1)
    batches.close()


def test_a_long_wait_is_told(monkeypatch, capsys):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.2)
    monkeypatch.setattr(prefetch, "LOOK", 0.02)
    batches = loader().iterate(0, 3, lambda host: time.sleep(1.0 if host.step == 1 else 0.0))
    next(batches)
    capsys.readouterr()
    list(batches)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4  # after 0.2, 0.4 and 0.8 s
    assert all(line.startswith("no batch for ") for line in lines)


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


def test_an_error_of_the_user_stays_one():
    class Gone(Memory):
        def __getitem__(self, index):
            raise UserError("the file is gone")

    source = loader(threads=2)
    source.records = Gone("train", COUNT, {})
    with pytest.raises(UserError, match="the file is gone"):
        list(source.iterate(0, 2, lambda host: host))


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
