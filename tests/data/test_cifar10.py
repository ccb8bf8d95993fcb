"""cifar10 built from a few of the real pictures, and from files in the published form."""

import io
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest

from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.sources.cifar10 import CLASSES, TEMPLATES, Cifar10
from mmjax.data.sources.cifar10_builder import ARCHIVES, hold_out, read_binary
from mmjax.errors import UserError

EACH = 20


def pack(path, contents, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def pictures(shared_data):
    """The first test pictures of every class, by name."""
    found = {}
    counts = Counter()
    with tarfile.open(shared_data / "cifar10" / ARCHIVES["test"]) as archive:
        for member in archive:
            folder = member.name.split("/")[1]
            if member.isfile() and counts[folder] < EACH:
                counts[folder] += 1
                found[member.name] = archive.extractfile(member).read()
    assert sorted(counts) == sorted(CLASSES)
    return found


@pytest.fixture(scope="module")
def raw(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    (folder / "cifar10").mkdir()
    pack(folder / "cifar10" / ARCHIVES["test"], pictures, "w:xz")
    as_train = {name.replace("test/", "train/"): content for name, content in pictures.items()}
    pack(folder / "cifar10" / ARCHIVES["train"], as_train, "w:xz")
    return folder


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("data"))
    Cifar10().prepare(data_dir, str(raw))
    return data_dir


def test_examples_are_the_files(built, pictures):
    sizes = {}
    for split in Cifar10().splits:
        records, seen = Cifar10().open(built, split), []
        for index in range(len(records)):
            example = records[index]
            name = CLASSES[example["label"]]
            assert example["image"] in [content for path, content in pictures.items() if f"/{name}/" in path]
            assert name in example["text"]
            assert example["text"] == records[index]["text"]
            seen.append(example["label"])
        sizes[split] = len(records)
        assert set(Counter(seen).values()) == {sizes[split] // 10}
    assert sizes == {"train": 180, "validation": 20, "test": 200}
    assert ImageInput(size=32).read(example["image"], None)[0].shape == (32, 32, 3)
    assert TextInput(length=40).read(example["text"], None)[1].any()


def test_captions_use_every_template(built):
    records = Cifar10().open(built, "train")
    texts = [records[index]["text"] for index in range(len(records))]
    for template in TEMPLATES:
        start, end = template.split("{}")
        assert any(text.startswith(start) and text.endswith(end) for text in texts)
    assert "a airplane" not in " ".join(texts)


def test_the_published_form_is_read(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    rows = [bytes([label]) + each.transpose(2, 0, 1).tobytes() for label, each in zip((3, 9, 0), pixels, strict=True)]
    folder = "cifar-10-batches-bin"
    contents = {f"{folder}/data_batch_1.bin": rows[0] + rows[1], f"{folder}/test_batch.bin": rows[2]}
    pack(tmp_path / "archive.tar.gz", contents | {f"{folder}/readme.html": b"text"})
    found = read_binary(tmp_path / "archive.tar.gz")
    assert [label for label, _ in found["train"] + found["test"]] == [3, 9, 0]
    for (_, content), each in zip(found["train"] + found["test"], pixels, strict=True):
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], each)


def test_the_last_of_each_class_are_held_out():
    rows = [(label, bytes([turn])) for turn in range(20) for label in (0, 1)]
    train, validation = hold_out(rows)
    assert len(train) == 36
    assert validation == [(0, b"\x12"), (1, b"\x12"), (0, b"\x13"), (1, b"\x13")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), (b"no archive", "cannot be read"), ("cut", "cannot be read"), ("other", "lacks another")],
)
def test_files_that_are_something_else_are_one_clear_line(raw, tmp_path, content, message):
    (tmp_path / "cifar10").mkdir()
    for name in ARCHIVES.values():
        (tmp_path / "cifar10" / name).write_bytes((raw / "cifar10" / name).read_bytes())
    path = tmp_path / "cifar10" / ARCHIVES["train"]
    if content is None:
        path.unlink()
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:20_000])
    elif content == "other":
        pack(path, {"train/whale/0.jpg": b"", "../../escaped.jpg": b"x"}, "w:xz")
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Cifar10().prepare(str(tmp_path / "data"), str(tmp_path))
    assert not (tmp_path.parent / "escaped.jpg").exists()


def test_it_must_be_prepared(tmp_path):
    with pytest.raises(UserError, match=r"launch\.prepare cifar10"):
        Cifar10().open(str(tmp_path), "train")
