"""Where files lie: COCO's folders, splits that are empty or taken out of training, and what a conversion spares."""

import json

import pytest

from mmjax.data.formats.array_record import ArrayRecord, convert
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.recognise import recognise
from mmjax.data.formats.splits import SplitByName
from mmjax.errors import UserError

TABLE = "a\n" + "".join(f"{number}\n" for number in range(400))


@pytest.mark.parametrize("layout", ["beside", "annotations", "annotations itself"])
def test_coco_captions_are_found_with_their_pictures(layout, examples, tmp_path, cache):
    place = tmp_path / "coco"
    for split, part in (("train", examples[:6]), ("val", examples[6:9])):
        pictures = place if layout == "beside" else place / f"{split}2017"
        notes = place if layout == "beside" else place / "annotations"
        pictures.mkdir(parents=True, exist_ok=True)
        notes.mkdir(exist_ok=True)
        for each in part:
            (pictures / f"{each['id']}.png").write_bytes(each["image"])
        coco = {
            "info": {"year": 2017},
            "images": [{"id": int(each["id"]), "file_name": f"{each['id']}.png"} for each in part],
            "annotations": [{"image_id": int(each["id"]), "caption": each["text"]} for each in part for _ in range(2)],
        }
        (notes / f"captions_{split}2017.json").write_text(json.dumps(coco))
    source = recognise(str(place / "annotations" if layout == "annotations itself" else place), cache)
    assert type(source) is Manifest
    assert source.splits == ("train", "validation")
    records = source.open(cache, "train")
    assert [records[index]["image"] for index in range(6)] == [each["image"] for each in examples[:6]]
    assert records[0]["captions"] == [examples[0]["text"]] * 2


def test_some_of_the_train_files_validate(tmp_path, cache):
    (tmp_path / "train.csv").write_text(TABLE)
    (tmp_path / "test.csv").write_text("a\n" + "1\n" * 20)
    source = Manifest(path=str(tmp_path), split=SplitByName(validation=0.25))
    assert source.splits == ("train", "validation", "test")
    counts = {split: len(source.open(cache, split)) for split in source.splits}
    assert counts["train"] + counts["validation"] == 400
    assert 70 < counts["validation"] < 130
    assert counts["test"] == 20


def test_a_conversion_leaves_out_empty_splits_and_spares_other_files(tmp_path, cache):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(TABLE)
    (tmp_path / "data" / "val.csv").write_text("a\n")
    source = Manifest(path=str(tmp_path / "data"))
    with pytest.raises(UserError, match="data holds other files: choose another out"):
        convert(source, cache, tmp_path / "data")
    folder = convert(source, cache, tmp_path / "converted")
    assert ArrayRecord(path=str(folder)).splits == ("train",)
    assert convert(source, cache, folder) == folder


def test_notes_beside_the_files_are_not_examples(examples, tmp_path, cache):
    for each in examples[:3]:
        (tmp_path / f"{each['id']}.png").write_bytes(each["image"])
    (tmp_path / "README.txt").write_text("What these are.")
    (tmp_path / "LICENSE.txt").write_text("CC0")
    source = Folder(path=str(tmp_path))
    records = [source.open(cache, split) for split in source.splits]
    assert [set(each[index]) for each in records for index in range(len(each))] == [{"image"}] * 3
