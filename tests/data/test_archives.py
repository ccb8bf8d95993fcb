"""Archives, and files where archives are expected, that are made to hurt: one line each, and soon."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmjax.data import archives
from mmjax.data.inputs import ImageInput
from mmjax.data.prompt import make_prompt
from mmjax.data.sources import cifar10_builder, emoji_builder, fsdd, mnist, pairs
from mmjax.data.sources.building import StoredExamples, build
from mmjax.data.sources.cifar10 import CLASSES
from mmjax.errors import UserError


def packed(content: bytes, flags: int = 0, method: int = zipfile.ZIP_DEFLATED, keep: int = -1) -> bytes:
    """A zip archive with two pictures, of the first of which the headers tell other things."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", content)
        archive.writestr("b.png", b"whole")
    changed = bytearray(file.getvalue())
    central = changed.index(b"PK\x01\x02")
    for place in (6, central + 8):
        changed[place : place + 4] = struct.pack("<HH", flags, method)
    if keep >= 0:  # bytes of the first member, which ends early
        changed[central + 20 : central + 24] = changed[18:22] = struct.pack("<I", keep)
    return bytes(changed)


@pytest.mark.parametrize(
    "archive",
    [packed(b"x" * 1000, flags=1), packed(b"x" * 1000, method=77), packed(b"x" * 1000, keep=5)],
    ids=["encrypted", "unknown method", "ends early"],
)
def test_a_member_that_cannot_be_read_is_absent(archive, tmp_path):
    path = tmp_path / "pictures.zip"
    path.write_bytes(archive)
    assert emoji_builder.read_pictures(path, "", ["a.png", "b.png"]) == {"a.png": b"", "b.png": b"whole"}
    with pytest.raises(UserError, match="is not the archive of"):
        emoji_builder.read_gemoji(path)
    with pytest.raises(UserError, match="is not the archive of"):
        fsdd.archive_reader(path)


def test_what_inflates_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 2**20)
    bomb, path = bytes(2**23), tmp_path / "bomb"
    path.write_bytes(packed(bomb))
    assert emoji_builder.read_pictures(path, "", ["a.png"]) == {"a.png": b""}
    path.write_bytes(gzip.compress(bomb))
    with pytest.raises(UserError, match="inflates to more than 1048576 bytes"):
        pairs.read_digit_pairs(path)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("other")
        member.size = len(bomb)
        archive.addfile(member, io.BytesIO(bomb))
    with pytest.raises(UserError, match="inflates to more than 1048576 bytes"):
        cifar10_builder.read_pictures(path, "train")


def test_links_are_left_out(tmp_path):
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        for index, name in enumerate(CLASSES):
            for kind, target in ((tarfile.SYMTYPE, "nowhere"), (tarfile.LNKTYPE, f"train/{name}/loop.jpg")):
                member = tarfile.TarInfo(f"train/{name}/{'loop' if kind == tarfile.LNKTYPE else 'link'}.jpg")
                member.type, member.linkname = kind, target
                archive.addfile(member)
            member = tarfile.TarInfo(f"train/{name}/real.jpg")
            member.size = 1
            archive.addfile(member, io.BytesIO(bytes([index])))
    assert cifar10_builder.read_pictures(path, "train") == [(index, bytes([index])) for index in range(10)]


@pytest.mark.parametrize("content", ["", "00", "00000801", "00000801000000"])
def test_files_of_mnist_that_are_too_short(content, tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes.fromhex(content)))
    with pytest.raises(UserError, match="is not an IDX file of labels"):
        mnist.read_labels(path)


def test_labels_of_mnist_are_digits_and_enough(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes.fromhex("00000801 00000002 03ff")))
    with pytest.raises(UserError, match="holds the label 255, which is not a digit"):
        mnist.read_labels(path)
    path.write_bytes(gzip.compress(bytes.fromhex("00000801 00000002 0301")))
    with pytest.raises(UserError, match="too few for each split"):
        pairs.make_digit_pairs("recording_disjoint", mnist.read_labels(path), mnist.read_labels(path))


@pytest.mark.parametrize("number", ["-1", "9" * 30, "9" * 5000])
def test_numbers_of_pairs_that_are_out_of_range(number, tmp_path):
    path = tmp_path / "pairs.csv.gz"
    lines = ["split,mnist_file,mnist_index,label,fsdd_file,noise_seed", f"train,train,0,3,3_theo_0.wav,{number}"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(UserError, match=r"is not a table of pairs \(line 2"):
        pairs.read_digit_pairs(path)


READERS = {
    "idx": mnist.read_labels,
    "pairs": pairs.read_digit_pairs,
    "table": emoji_builder.read_table,
    "gemoji": emoji_builder.read_gemoji,
    "zip": lambda path: emoji_builder.read_pictures(path, "", ["a.png"]),
    "tar": lambda path: cifar10_builder.read_pictures(path, "train"),
    "binary": cifar10_builder.read_binary,
    "prompt": lambda path: make_prompt({"image": ImageInput(size=8)}, {"image": str(path)}),
}


@pytest.mark.parametrize("reader", READERS)
def test_folders_pipes_and_devices_are_no_files(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UserError, match=reason):
            READERS[reader](path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "data.array_record"])
def test_a_data_set_with_a_pipe_in_it_is_damaged(name, tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"is damaged .*: delete it and prepare the data again"):
        StoredExamples(tmp_path, "train")


def test_a_lock_that_is_a_pipe_is_no_wait(tmp_path):
    os.mkfifo(tmp_path / ".lock")

    class Builder:
        data_dir = str(tmp_path / "1.0.0")

    with pytest.raises(UserError, match="cannot be built"):
        build(Builder())
