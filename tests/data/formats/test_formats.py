"""Sources of users' files: the same examples through every format, splits, indexes, and files that are wrong."""

import functools
import hashlib
import json
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.clean import BadInput, take
from mmjax.data.formats.array_record import ArrayRecord, convert
from mmjax.data.formats.arrow import HuggingFace, Parquet
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.recognise import recognise
from mmjax.data.formats.splits import SplitByColumn, SplitByFile, SplitByHash, split_of_name
from mmjax.data.formats.tfds import Tfds
from mmjax.data.formats.web_dataset import WebDataset
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Recording, Source, Unreadable
from mmjax.data.survey import survey
from mmjax.errors import UserError
from tests.data.formats import examples as written

INPUTS = {
    "image": ImageInput(size=24),
    "audio": SpectrogramInput(),
    "text": TextInput(length=32),
    "label": LabelInput(),
}


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> list[dict[str, Any]]:
    return written.real_examples(shared_data, 300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def sources(examples, tmp_path_factory, cache) -> dict[str, Source]:
    """Every format's source of the same examples."""
    root = tmp_path_factory.mktemp("formats")
    split = SplitByHash(group="speaker", validation=0.25, test=0.25)
    options: dict[str, Any] = {"key": "id", "split": split}
    found: dict[str, Source] = {
        "jsonl": Manifest(path=str(written.write_json_lines(root / "jsonl", examples)), **options),
        "csv": Manifest(path=str(written.write_csv(root / "csv", examples)), **options),
        "tsv": Manifest(path=str(written.write_csv(root / "tsv", examples, ".tsv")), **options),
        "metadata": Folder(path=str(written.write_metadata_folder(root / "metadata", examples)), **options),
        "parquet": Parquet(path=str(written.write_parquet(root / "parquet", examples)), **options),
        "arrow": HuggingFace(path=str(written.write_arrow(root / "arrow", examples)), **options),
        "tar": WebDataset(path=str(written.write_tars(root / "tar", examples)), **options),
    }
    found["array_record"] = ArrayRecord(path=str(convert(found["jsonl"], cache, root / "converted")))
    return found


def digest(source: Source, cache: str, processes: int = 1) -> str:
    """SHA-256 over the ids and arrays of the first two global batches, put together from as many processes' rows."""
    data = Data(source=source, inputs=INPUTS, threads=0).fit_tokenizers(cache)
    parts = [np.arange(16)[process::processes] for process in range(processes)]
    loaders = [Loader(data, cache, "train", 16, seed=3, rows=rows) for rows in parts]
    found = hashlib.sha256()
    for step in range(2):
        batches = [loader.batch(step) for loader in loaders]
        assert not any(batch.errors for batch in batches)
        found.update(",".join(batches[0].ids).encode())
        order = np.argsort(np.concatenate(parts))
        for name in sorted(batches[0].batch.values):
            values = np.concatenate([batch.batch.values[name] for batch in batches])[order]
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


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


def wrong(tmp_path: Path, cache: str, source: Source) -> str:
    """What is said of a source that cannot be read."""
    with pytest.raises(UserError) as found:
        source.open(cache, source.splits[0])
    return str(found.value)


def test_wrong_manifests_are_named_by_file_and_row(tmp_path, cache):
    said = functools.partial(wrong, tmp_path, cache)
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"a": \n')
    assert "train.jsonl, line 2: not JSON" in said(Manifest(path=str(tmp_path / "train.jsonl")))
    (tmp_path / "train2.jsonl").write_text("[1]\n")
    assert "line 1: not an object of columns" in said(Manifest(path=str(tmp_path / "train2.jsonl")))
    (tmp_path / "quote.csv").write_text('a,b\n1,"open\n2,3\n')
    assert "quote.csv: the row of line 2 cannot be read" in said(Manifest(path=str(tmp_path / "quote.csv")))
    (tmp_path / "short.csv").write_text("a,b\n1,2\n3\n")
    assert "short.csv, line 3: 1 values where there are 2 columns" in said(Manifest(path=str(tmp_path / "short.csv")))
    (tmp_path / "coco.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    assert "is not a COCO captions file" in said(Manifest(path=str(tmp_path / "coco.json")))
    (tmp_path / "twice.jsonl").write_text('{"id": "x"}\n{"id": "x"}\n')
    assert "2 examples share the name x" in said(Manifest(path=str(tmp_path / "twice.jsonl"), key="id"))
    assert "has no 'name' that could name it (key=name); it has id" in said(
        Manifest(path=str(tmp_path / "twice.jsonl"), key="name")
    )
    assert "there is no such file or folder" in said_at_once(Manifest(path=str(tmp_path / "nothing.jsonl")))
    (tmp_path / "empty").mkdir()
    assert "holds no Manifest files" in said_at_once(Manifest(path=str(tmp_path / "empty")))
    (tmp_path / "empty.jsonl").write_text("")
    data = Data(source=Manifest(path=str(tmp_path / "empty.jsonl")), inputs=INPUTS)
    with pytest.raises(UserError, match="the split 'train' has no examples"):
        data.open(cache, "train")


def said_at_once(source: Source) -> str:
    with pytest.raises(UserError) as found:
        _ = source.splits
    return str(found.value)


def test_text_that_is_not_utf8_and_other_separators_are_told(tmp_path, cache):
    said = functools.partial(wrong, tmp_path, cache)
    (tmp_path / "latin.csv").write_bytes("a,b\ncaf\xe9,1\n".encode("latin-1"))
    assert "latin.csv is not UTF-8 text: save it as UTF-8" in said(Manifest(path=str(tmp_path / "latin.csv")))
    (tmp_path / "wide.csv").write_bytes("a,b\nx,1\n".encode("utf-16"))
    assert "wide.csv is not UTF-8 text" in said(Manifest(path=str(tmp_path / "wide.csv")))
    (tmp_path / "semicolons.csv").write_text("a;b\n1;2\n")
    assert "seems to separate columns by ';'" in said(Manifest(path=str(tmp_path / "semicolons.csv")))
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    (folder / "1.txt").write_bytes(b"caf\xe9")
    (text,) = [Folder(path=str(folder.parent)).open(cache, "train")[0]["text"]]
    assert text == Unreadable("1.txt is not UTF-8 text")


def test_words_for_a_missing_number_are_missing(tmp_path, cache):
    (tmp_path / "train.csv").write_text("x,kind\n1.5,a\nnan,na\nN/A,b\n,c\n-2,d\n")
    records = Manifest(path=str(tmp_path)).open(cache, "train")
    assert [records[index]["x"] for index in range(5)] == [1.5, None, None, None, -2.0]
    assert records[1]["kind"] == "na"
    fields = {field.name: field for field in survey(records)}
    assert (fields["x"].missing, fields["x"].sizes["value"].tolist()) == (3, [1.5, -2.0])


def test_values_of_another_kind_than_their_column_are_counted_and_absent(tmp_path, cache):
    lines = "".join(f"{number}\n" for number in range(1000))
    (tmp_path / "train.csv").write_text(f"x\n{lines}many\n5\n")
    data = Data(source=Manifest(path=str(tmp_path)), inputs={"x": VectorInput(size=1)}, threads=0)
    batch = Loader(data, cache, "train", 1002).batch(0)
    assert [error.id for error in batch.errors] == ["train.csv:1001"]
    assert batch.batch.values["x"][1001, 0, 0] == 5


def test_files_that_a_manifest_names_stay_in_its_folder(tmp_path, cache):
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"secret")
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "link.png").symlink_to(outside)
    (inside / "empty.png").write_bytes(b"")
    names = ["../secret.png", str(outside), "link.png", "missing.png", "empty.png"]
    (inside / "train.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    records = Manifest(path=str(inside)).open(cache, "train")
    found = [records[index]["image"] for index in range(5)]
    assert [isinstance(value, Unreadable) for value in found] == [True] * 4 + [False]
    assert all("leads out of" in value.reason for value in found[:3])
    assert "missing.png cannot be read: No such file" in found[3].reason
    with pytest.raises(BadInput, match="the image is empty"):
        ImageInput(size=8).read(take(records[4], "image"), None)
    # Where the folder is said to be larger, they are read.
    wide = Manifest(path=str(inside), root=str(tmp_path)).open(cache, "train")
    assert wide[1]["image"] == b"secret"
    batch = Loader(Data(source=Manifest(path=str(inside)), inputs={"image": ImageInput(size=8)}), cache, "train", 5)
    assert len(batch.batch(0).errors) == 5


def test_a_recording_is_decoded_by_its_content_whatever_its_name(examples, tmp_path, cache):
    import io

    import soundfile

    samples, rate = soundfile.read(io.BytesIO(examples[0]["audio"]))
    soundfile.write(tmp_path / "really.mp3", samples, rate, format="MP3")
    (tmp_path / "really.mp3").rename(tmp_path / "called.wav")
    (tmp_path / "train.jsonl").write_text(json.dumps({"audio": "called.wav"}) + "\n")
    records = Manifest(path=str(tmp_path)).open(cache, "train")
    values, mask = SpectrogramInput().read(records[0]["audio"], None)
    assert mask.any()
    assert np.isfinite(values).all()


def test_a_truncated_or_compressed_tar_is_named(examples, tmp_path, cache):
    folder = written.write_tars(tmp_path / "tar", examples[:20])
    shard = folder / "shard-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "shard-00000.tar" in wrong(tmp_path, cache, WebDataset(path=str(folder)))
    import gzip

    shard.write_bytes(gzip.compress(whole))
    assert "cannot be read as an uncompressed tar" in wrong(tmp_path, cache, WebDataset(path=str(folder)))


def test_members_of_a_tar_lead_nowhere(tmp_path, cache):
    import io

    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        link = tarfile.TarInfo("0001.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("../../0002.txt", "/0003.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
    records = WebDataset(path=str(tmp_path / "train.tar")).open(cache, "train")
    assert [records[index] for index in range(len(records))] == [{"text": "text"}, {"text": "text"}]


def test_a_shard_that_changes_while_it_is_read_stops_the_run(examples, tmp_path, cache):
    for source, path in (
        (WebDataset, written.write_tars(tmp_path / "tar", examples[:20]) / "shard-00000.tar"),
        (Parquet, written.write_parquet(tmp_path / "parquet", examples[:20]) / "a.parquet"),
    ):
        records = source(path=str(path), split=SplitByHash(validation=0, test=0)).open(cache, "train")
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(UserError, match="was changed since it was indexed"):
            _ = records[0]


def test_a_corrupt_row_group_is_counted_and_absent(examples, tmp_path, cache):
    import pyarrow.parquet

    folder = written.write_parquet(tmp_path / "parquet", examples)
    path = folder / "a.parquet"
    file = pyarrow.parquet.ParquetFile(path)
    column = next(
        chunk
        for place in range(file.metadata.num_columns)
        if (chunk := file.metadata.row_group(1).column(place)).path_in_schema == "image.bytes"
    )
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    source = Parquet(path=str(path), key="id", split=SplitByHash(validation=0, test=0))
    data = Data(source=source, inputs={"text": TextInput(length=32)}, threads=0)
    batch = Loader(data, cache, "train", 150).batch(0)
    assert {error.index // 16 for error in batch.errors} == {1}
    assert "row group 1 of" in batch.errors[0].reason
    assert batch.batch.present["text"].sum() == 150 - 16


def test_two_files_of_one_kind_and_stem_are_named(tmp_path, cache):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert "are both the image of one example" in wrong(tmp_path, cache, Folder(path=str(tmp_path)))


def test_formats_are_recognised(sources, tmp_path):
    for name, source in sources.items():
        folder = Path(source.path) if Path(source.path).is_dir() else Path(source.path).parent
        assert type(recognise(str(folder))) is type(source), name
    with pytest.raises(UserError, match="there is no such file or folder"):
        recognise(str(tmp_path / "nothing"))
    (tmp_path / "notes.odt").write_text("")
    with pytest.raises(UserError, match=r"holds nothing that is read \(it has .odt\)"):
        recognise(str(tmp_path))


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
