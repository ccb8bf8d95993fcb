"""Users' files that are wrong: each a line with file and row, or counted and absent."""

import functools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmjax.data.audio_inputs import SpectrogramInput
from mmjax.data.clean import BadInput, take
from mmjax.data.formats.arrow import Parquet
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.splits import SplitByHash
from mmjax.data.formats.web_dataset import WebDataset
from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.base import Source, Unreadable
from mmjax.data.survey import survey
from mmjax.errors import UserError
from tests.data.formats import examples as written

INPUTS = {
    "image": ImageInput(size=24),
    "audio": SpectrogramInput(),
    "text": TextInput(length=32),
    "label": LabelInput(),
}


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
