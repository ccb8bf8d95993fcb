"""emoji built from the real files, its table made from Unicode's list, and files that are not what they should be."""

import io
import json
import shutil
import zipfile
from collections import Counter

import cv2
import numpy as np
import pytest

from mmjax.data.inputs import ImageInput
from mmjax.data.sources.emoji import GROUPS, Emoji
from mmjax.data.sources.emoji_builder import GEMOJI, make_rows, read_gemoji, read_table
from mmjax.errors import UserError


@pytest.fixture(scope="module")
def built(shared_data, tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("data"))
    Emoji().prepare(data_dir, str(shared_data))
    return data_dir


@pytest.fixture(scope="module")
def lines(shared_data):
    text = (shared_data / "noto_emoji" / "emoji.jsonl").read_text()
    return [fields for fields in map(json.loads, text.splitlines()) if not fields["skin_tone"]]


def test_examples_are_the_files_in_the_tables_order(built, shared_data, lines):
    with zipfile.ZipFile(shared_data / "noto_emoji" / "noto_emoji_png72.zip") as archive:
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            records, rows = Emoji().open(built, split), [fields for fields in lines if fields["split"] == short]
            assert len(records) == len(rows)
            for index in range(0, len(rows), 50):
                example = records[index]
                assert example["image"] == archive.read(rows[index]["file"])
                assert example["text"] == rows[index]["name"]
                assert GROUPS[example["group"]] == rows[index]["group"]
                assert example.get("tags", "") == ", ".join(rows[index]["tags"])
    assert records.id(7) == "test/7"


def test_pictures_are_laid_on_white(built):
    example = Emoji().open(built, "train")[0]
    picture, _ = ImageInput(size=72).read(example["image"], None)
    pixels = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
    clear = pixels[..., 3] == 0
    assert clear.any()
    np.testing.assert_array_equal(picture[clear], 1)
    solid = pixels[..., 3] == 255
    np.testing.assert_allclose(picture[solid], pixels[solid][:, 2::-1] / 255, atol=1e-6)


def test_skin_tones_are_a_choice(shared_data, tmp_path, lines):
    both = read_table(shared_data / "noto_emoji" / "emoji.jsonl")
    Emoji(skin_tones="all").prepare(str(tmp_path), str(shared_data))
    sizes = {
        split: len(Emoji(skin_tones="all").open(str(tmp_path), split)) for split in ("train", "validation", "test")
    }
    assert sizes == Counter(row.split for row in both) == {"train": 2777, "validation": 325, "test": 292}


LISTED = """
# group: Smileys & Emotion
# subgroup: face-smiling
1F600 ; fully-qualified     # \U0001f600 E1.0 grinning face
263A FE0F ; fully-qualified     # \u263a\ufe0f E0.6 smiling face
263A ; unqualified         # \u263a E0.6 smiling face
# group: People & Body
1F44B ; fully-qualified     # \U0001f44b E0.6 waving hand
1F44B 1F3FD ; fully-qualified     # \U0001f44b\U0001f3fd E1.0 waving hand: medium skin tone
# group: Component
1F3FB ; component           # \U0001f3fb E1.0 light skin tone
"""


def test_rows_are_made_of_unicodes_list():
    rows = make_rows(LISTED, {"emoji_u263a.png": ("blush",)})
    assert [(row.file, row.name, row.group, row.tags, row.skin_tone) for row in rows] == [
        ("emoji_u1f600.png", "grinning face", "Smileys & Emotion", (), False),
        ("emoji_u263a.png", "smiling face", "Smileys & Emotion", ("blush",), False),
        ("emoji_u1f44b.png", "waving hand", "People & Body", (), False),
        ("emoji_u1f44b_1f3fd.png", "waving hand: medium skin tone", "People & Body", (), True),
    ]
    assert rows[2].split == rows[3].split


def test_the_rule_of_skin_tones_is_the_tables(shared_data):
    text = (shared_data / "noto_emoji" / "emoji.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    listed = "\n".join(f"# group: {row['group']}\n{0:04X} ; fully-qualified # x E1.0 {row['name']}" for row in rows)
    assert [row.skin_tone for row in make_rows(listed, {})] == [row["skin_tone"] for row in rows]


def test_the_repositorys_archive_is_read(tmp_path):
    path = tmp_path / "gemoji.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"gemoji-{GEMOJI}/vendor/unicode-emoji-test.txt", LISTED)
        archive.writestr(f"gemoji-{GEMOJI}/db/emoji.json", json.dumps([{"emoji": "\U0001f600", "tags": ["smile"]}]))
    assert read_gemoji(path)[0].tags == ("smile",)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the archive of"):
        read_gemoji(path)


def test_a_damaged_picture_is_absent(shared_data, tmp_path, lines):
    raw = tmp_path / "raw" / "noto_emoji"
    raw.mkdir(parents=True)
    some = [next(fields for fields in lines if fields["split"] == split) for split in ("train", "val", "test")]
    (raw / "emoji.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in some))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for fields in some:
            archive.writestr(fields["file"], b"\x89PNG and so on")
    broken = bytearray(content.getvalue())
    broken[broken.index(b"PNG and so on") + 5] ^= 1
    (raw / "noto_emoji_png72.zip").write_bytes(broken)
    Emoji().prepare(str(tmp_path / "data"), str(tmp_path / "raw"))
    first, second = (Emoji().open(str(tmp_path / "data"), split)[0] for split in ("train", "test"))
    assert "image" not in first
    assert second["image"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("emoji.jsonl", None, "is not a table of emoji"),
        ("emoji.jsonl", b'{"file": 1}\n', r"line 1: 'name'"),
        ("noto_emoji_png72.zip", None, "is missing: it is the archive"),
        ("noto_emoji_png72.zip", b"no archive", "cannot be read"),
    ],
)
def test_files_that_are_something_else_are_one_clear_line(shared_data, tmp_path, file, content, message):
    raw = tmp_path / "noto_emoji"
    raw.mkdir()
    for name in ("emoji.jsonl", "noto_emoji_png72.zip"):
        shutil.copy(shared_data / "noto_emoji" / name, raw)
    if content is None:
        (raw / file).unlink()
    else:
        (raw / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Emoji().prepare(str(tmp_path / "data"), str(tmp_path))


def test_it_must_be_prepared(tmp_path):
    with pytest.raises(UserError, match=r"launch\.prepare emoji skin_tones=one"):
        Emoji().open(str(tmp_path), "train")
