"""Sources of users' files: the same examples through every format, splits, indexes, and conversion."""

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest

from mmjax.data.formats.array_record import ArrayRecord, convert
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.recognise import recognise
from mmjax.data.formats.splits import SplitByColumn, SplitByFile, SplitByHash, split_of_name
from mmjax.data.formats.tfds import Tfds
from mmjax.data.inputs import LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Recording, Source, Unreadable
from mmjax.data.survey import survey
from mmjax.errors import UserError
from tests.data.formats import examples as written
from tests.data.formats.batches import digest


def test_every_format_gives_the_same_batches_on_1_2_and_4_processes(sources, cache):
    expected = digest(sources["jsonl"], cache)
    assert {name: digest(source, cache) for name, source in sources.items()} == dict.fromkeys(sources, expected)
    assert [digest(source, cache, count) for source in (sources["tar"], sources["parquet"]) for count in (2, 4)] == [
        expected
    ] * 4


def test_files_of_one_stem_are_one_example_and_subfolders_are_classes(examples, tmp_path, cache):
    source = Folder(path=str(written.write_folder(tmp_path / "folder", examples)), key="id")
    assert recognise(source.path) == Folder(path=source.path)
    records = {split: source.open(cache, split) for split in source.splits}
    found = {each.id(index): each[index] for each in records.values() for index in range(len(each))}
    assert found == {each["id"]: each for each in examples}


def test_a_group_is_never_in_two_splits(sources, cache):
    for name in ("jsonl", "parquet", "tar"):
        speakers = {}
        for split in sources[name].splits:
            records = sources[name].open(cache, split)
            speakers[split] = set(records.column("speaker"))
            assert len(speakers[split]) > 0, (name, split)
        assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) == 6


def test_hashed_splits_have_their_shares_and_another_salt_gives_others():
    ids = [f"example {number}" for number in range(20_000)]
    assigned = [SplitByHash(validation=0.1, test=0.2).assign("", id, {}) for id in ids]
    shares = [assigned.count(split) / len(ids) for split in ("train", "validation", "test")]
    # Three standard deviations of a binomial share of 20,000.
    assert np.abs(np.array(shares) - [0.7, 0.1, 0.2]).max() < 0.01
    others = [SplitByHash(validation=0.1, test=0.2, salt="other").assign("", id, {}) for id in ids]
    assert 0.4 < np.mean([one == other for one, other in zip(assigned, others, strict=True)]) < 0.7
    with pytest.raises(ValueError, match="leave something for training"):
        SplitByHash(validation=0.5, test=0.5)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/cat/1.png", "train"),
        ("data/val-00000-of-00002.parquet", "validation"),
        ("dev.jsonl", "validation"),
        ("my_test.csv", "test"),
        ("training.tsv", "train"),
        ("contest/latest.csv", None),
    ],
)
def test_names_of_files_tell_the_split(path, split):
    assert split_of_name(path) == split


def rows(count: int, **more: Any) -> str:
    return "".join(json.dumps({"id": f"{place}", "text": f"text {place}", **more}) + "\n" for place in range(count))


def test_splits_by_names_files_and_columns(tmp_path, cache):
    (tmp_path / "train.jsonl").write_text(rows(5))
    (tmp_path / "val.jsonl").write_text(rows(3).replace('"id": "', '"id": "v'))
    by_name = Manifest(path=str(tmp_path))
    assert {split: len(by_name.open(cache, split)) for split in by_name.splits} == {"train": 5, "validation": 3}
    by_file = Manifest(path=str(tmp_path), split=SplitByFile(train="v*.jsonl", test="tr*"))
    assert {split: len(by_file.open(cache, split)) for split in by_file.splits} == {"train": 3, "test": 5}
    (tmp_path / "column").mkdir()
    (tmp_path / "column/all.jsonl").write_text(rows(4, fold="a") + rows(2, fold="b") + rows(7, fold="c"))
    column = SplitByColumn(column="fold", train="a", validation="b", test=None)
    source = Manifest(path=str(tmp_path / "column"), split=column)
    assert {split: len(source.open(cache, split)) for split in source.splits} == {"train": 4, "validation": 2}
    with pytest.raises(UserError, match=r"all.jsonl has no column 'set', by which split.column divides"):
        chz.replace(source, split=SplitByColumn(column="set")).open(cache, "train")


def test_labels_are_learned_from_training_and_an_unseen_one_is_counted(tmp_path, cache):
    lines = [{"set": "train", "kind": kind} for kind in ("oak", "elm", "oak", "ash")] + [{"set": "test", "kind": "fir"}]
    (tmp_path / "trees.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Manifest(path=str(tmp_path / "trees.jsonl"), split=SplitByColumn(column="set", validation=None))
    data = Data(source=source, inputs={"kind": LabelInput()}, threads=0).fit_tokenizers(cache)
    assert data.features["kind"].names == ("ash", "elm", "oak")
    batch = Loader(data, cache, "train", 4).batch(0)
    assert batch.batch.values["kind"][:, 0].tolist() == [2, 1, 2, 0]
    unseen = Loader(data, cache, "test", 1).batch(0)
    assert "'fir' is not one of the 3 names" in unseen.errors[0].reason
    assert not unseen.batch.present["kind"][0]
    # A run keeps them: data that changed later do not change its classes.
    data.save(tmp_path / "run")
    (tmp_path / "trees.jsonl").write_text(json.dumps({"set": "train", "kind": "yew"}) + "\n")
    again = Data(source=source, inputs={"kind": LabelInput()}, threads=0).fit_tokenizers(cache, tmp_path / "run")
    assert again.features["kind"].names == ("ash", "elm", "oak")


def test_learned_labels_may_be_numbers_that_are_no_places(tmp_path, cache):
    (tmp_path / "train.csv").write_text("kind,x\n10,1.5\n2,2\n10,-1\n")
    data = Data(
        source=Manifest(path=str(tmp_path)), inputs={"kind": LabelInput(), "x": VectorInput(size=1)}, threads=0
    ).fit_tokenizers(cache)
    assert data.features["kind"].names == ("2", "10")
    batch = Loader(data, cache, "train", 3).batch(0).batch
    assert batch.values["kind"][:, 0].tolist() == [1, 0, 1]
    assert batch.values["x"][:, 0, 0].tolist() == [1.5, 2.0, -1.0]


def test_columns_of_numbers_make_one_scaled_vector(tmp_path, cache):
    (tmp_path / "train.csv").write_text("a,b,c\n1,10,x\n3,,y\n5,30,z\n")
    vector = VectorInput(size=2, fields=("a", "b"), mean=(3.0, 20.0), deviation=(2.0, 10.0))
    data = Data(source=Manifest(path=str(tmp_path)), inputs={"v": vector}, threads=0)
    data.check_fields(cache)
    batch = Loader(data, cache, "train", 3).batch(0).batch
    assert batch.values["v"][:, 0].tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert batch.present["v"].tolist() == [True, False, True]
    wrong = Data(source=data.source, inputs={"v": VectorInput(size=2, fields=("a", "d"))}, threads=0)
    with pytest.raises(UserError, match="reads the field d, which no example of the split train has"):
        wrong.check_fields(cache)


def test_of_several_captions_training_draws_one_an_epoch(tmp_path, cache):
    captions = [f"caption {number}" for number in range(8)]
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "caption": caption} for caption in captions],
    }
    (tmp_path / "captions_train.json").write_text(json.dumps(coco))
    data = Data(source=Manifest(path=str(tmp_path)), inputs={"text": TextInput(length=16, field="captions")}, threads=0)
    text = data.inputs["text"]
    assert isinstance(text, TextInput)
    drawn = [
        text.decode(Loader(data, cache, "train", 1, seed=0).batch(step).batch.values["text"][0]) for step in range(64)
    ]
    assert set(drawn) == set(captions)
    assert drawn == [
        text.decode(Loader(data, cache, "train", 1, seed=0).batch(step).batch.values["text"][0]) for step in range(64)
    ]
    assert text.decode(Loader(data, cache, "train", 1).batch(0).batch.values["text"][0]) == captions[0]


def test_random_access_is_the_same_in_threads_and_after_pickling(sources, cache):
    for name, source in sources.items():
        records = source.open(cache, "train")
        expected = [records[index] for index in range(20)]
        copy = pickle.loads(pickle.dumps(records))
        found: dict[int, Any] = {}

        def read(start: int, copy: Any = copy, found: dict[int, Any] = found) -> None:
            for index in range(start, 20, 4):
                found[index] = copy[index]

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[index] for index in range(20)] == expected, name


def test_an_index_is_made_once_and_anew_when_a_file_changes(tmp_path, cache):
    path = tmp_path / "all.jsonl"
    path.write_text(rows(50))
    source = Manifest(path=str(path), split=SplitByHash(validation=0, test=0))
    folder = source.prepare(cache)
    made = (folder / "index.json").stat().st_mtime_ns
    assert source.prepare(cache) == folder
    assert (folder / "index.json").stat().st_mtime_ns == made
    old = source.open(cache, "train")
    path.write_text(rows(60))
    assert len(source.open(cache, "train")) == 60
    # What is open goes on with what it had: never another batch.
    assert (len(old), old[49]["text"]) == (50, "text 49")
    assert source.open(cache, "train").fingerprint != old.fingerprint
    # Moved with its times, a data set keeps its index.
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "all.jsonl")
    moved = chz.replace(source, path=str(tmp_path / "moved/all.jsonl"))
    assert moved.open(cache, "train").fingerprint == source_fingerprint(moved, cache)


def source_fingerprint(source: Source, cache: str) -> str:
    return source.open(cache, "train").fingerprint


def test_a_killed_indexing_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "all.jsonl").write_text(rows(100_000))
    cache = tmp_path / "cache"
    code = (
        "from mmjax.data.formats.manifest import Manifest\n"
        f"Manifest(path={str(tmp_path / 'all.jsonl')!r}).prepare({str(cache)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not [*cache.glob("indexes/.partial-*/train.jsonl")] and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [*cache.glob("indexes/.partial-*")]
    assert not [*cache.glob("indexes/all-*")]
    source = Manifest(path=str(tmp_path / "all.jsonl"))
    assert sum(len(source.open(str(cache), split)) for split in source.splits) == 100_000


def test_formats_are_recognised(sources, tmp_path):
    for name, source in sources.items():
        folder = Path(source.path) if Path(source.path).is_dir() else Path(source.path).parent
        assert type(recognise(str(folder))) is type(source), name
    with pytest.raises(UserError, match="there is no such file or folder"):
        recognise(str(tmp_path / "nothing"))
    (tmp_path / "notes.odt").write_text("")
    with pytest.raises(UserError, match=r"holds nothing that is read \(it has .odt\)"):
        recognise(str(tmp_path))


def test_a_column_of_splits_is_read_to_its_end(cache, tmp_path):
    # The name of the only test example is one that a hash would not train on.
    last = next(f"last{index}" for index in range(99) if SplitByHash().assign("", f"last{index}", {}) == "test")
    rows = [*((f"{index}", "train") for index in range(40)), ("a", "dev"), (last, "test"), ("b", None)]
    lines = [json.dumps({"id": id, "split": word}) + "\n" for id, word in rows]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    path = str(tmp_path / "all.jsonl")
    split = SplitByColumn(train="train", validation="dev", test="test")
    assert recognise(path, cache) == Manifest(path=path, key="id", split=split)
    (tmp_path / "all.jsonl").write_text("".join(lines) + json.dumps({"id": "x", "split": "extra"}) + "\n")
    assert recognise(path, cache) == Manifest(path=path, key="id")


def test_a_survey_tells_kinds_lengths_and_faults(sources, examples, cache, tmp_path):
    fields = {field.name: field for field in survey(sources["tar"].open(cache, "train"))}
    kinds = {name: field.kind for name, field in fields.items()}
    assert kinds == {
        "image": "image", "audio": "audio", "text": "text", "id": "text", "label": "label", "speaker": "label"
    }  # fmt: skip
    assert fields["image"].percentiles("pixels high") == [72] * 5
    train = {each["id"]: each for each in examples}
    ids = [sources["tar"].open(cache, "train").id(index) for index in range(len(sources["tar"].open(cache, "train")))]
    lengths = [len(train[id]["text"]) for id in ids]
    assert fields["text"].percentiles("characters") == np.percentile(lengths, (0, 5, 50, 95, 100)).tolist()
    names = ["a.png", "gone.png"]
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"image": name, "x": None}) + "\n" for name in names))
    image, x = survey(Manifest(path=str(tmp_path)).open(cache, "train"))
    assert (image.unreadable, x.missing) == (1, 2)


def test_a_conversion_goes_on_where_it_stopped(sources, tmp_path, cache, monkeypatch):
    from mmjax.data.formats import array_record

    monkeypatch.setattr(array_record, "SHARD", 40)
    whole = convert(sources["jsonl"], cache, tmp_path / "whole", workers=1)
    written_shards = []
    write = array_record._write

    def stopping(source: Source, data_dir: str, folder: Path, shard: Any, file: str) -> None:
        if len(written_shards) == 3:
            raise KeyboardInterrupt
        write(source, data_dir, folder, shard, file)
        written_shards.append(file)

    monkeypatch.setattr(array_record, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(sources["jsonl"], cache, tmp_path / "part", workers=1)
    with pytest.raises(UserError, match=r"dataset.json is missing: `prepare convert` writes it"):
        _ = ArrayRecord(path=str(tmp_path / "part")).splits
    monkeypatch.setattr(array_record, "_write", write)
    first = (tmp_path / "part" / written_shards[0]).stat().st_mtime_ns
    part = convert(sources["jsonl"], cache, tmp_path / "part", workers=1)
    assert (part / written_shards[0]).stat().st_mtime_ns == first
    assert json.loads((part / "dataset.json").read_text()) == json.loads((whole / "dataset.json").read_text())
    with pytest.raises(UserError, match="holds a conversion of other data"):
        convert(sources["tar"], cache, part)
    # A changed byte is found.
    shard = part / written_shards[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: convert the data set again"):
        ArrayRecord(path=str(part)).prepare(cache)


def test_converted_fields_are_what_they_were(cache, tmp_path):
    from mmjax.data.formats.array_record import decode, encode

    example = {
        "bytes": b"\0\xff", "text": "héllo", "texts": ["a", "b"], "int": -5, "ints": [1, 2], "float": 0.1,
        "floats": [1.5, float("inf")], "empty": [], "nested": {"a": [1]}, "none": None, "flag": True,
    }  # fmt: skip
    found = decode(encode(example))
    assert found == {name: value for name, value in example.items() if value is not None}
    array, recording = np.arange(6, dtype=np.uint8).reshape(2, 3), Recording(np.array([1, -2], np.int16), 8000)
    found = decode(encode({"a": array, "r": recording, "u": Unreadable("why")}))
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["r"].samples, recording.samples)
    assert (found["r"].rate, found["r"].samples.dtype, found["u"]) == (8000, np.int16, Unreadable("why"))


def test_a_tfds_data_set_is_read_by_name(examples, tmp_path):
    import tensorflow_datasets as tfds

    class SpokenPictures(tfds.core.GeneratorBasedBuilder):
        """Real examples as TFDS keeps them."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "pixels": tfds.features.Tensor(shape=(2, 3), dtype=np.uint8),
                        "text": tfds.features.Text(),
                        "label": tfds.features.ClassLabel(names=["Smileys & Emotion", "People & Body"]),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(examples[:30])}

        def _generate_examples(self, some):
            for each in some:
                pixels = np.frombuffer(each["image"][-6:], np.uint8).reshape(2, 3)
                yield each["id"], {"pixels": pixels, "text": each["text"], "label": each["label"]}

    source = Tfds(name="spoken_pictures", train="train[:20]", validation="train[20:]", test=None)
    with pytest.raises(UserError, match=r"prepare it with `python -m launch.prepare tfds name=spoken_pictures`"):
        source.open(str(tmp_path), "train")
    source.prepare(str(tmp_path))
    records = {split: source.open(str(tmp_path), split) for split in source.splits}
    assert {split: len(each) for split, each in records.items()} == {"train": 20, "validation": 10}
    found = {row["text"]: row for each in records.values() for row in (each[index] for index in range(len(each)))}
    assert {text: row["label"] for text, row in found.items()} == {
        each["text"]: each["label"] for each in examples[:30]
    }
    for each in examples[:30]:
        assert found[each["text"]]["pixels"].tobytes() == each["image"][-6:]
    with pytest.raises(UserError, match=r"source.name=no_such_set is not a data set of TFDS"):
        Tfds(name="no_such_set").open(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"source.test=test: the data set has train"):
        chz.replace(source, test="test").open(str(tmp_path), "test")
