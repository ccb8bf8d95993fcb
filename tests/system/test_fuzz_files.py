"""Damaged files of every kind that is read: each is used, or refused by BadInput or UserError, and none takes long.

`--damaged-files` says how many are tried; what falls is written where the message says.
"""

import gzip
import io
import json
import shutil
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from mmjax.data.audio_inputs import SpectrogramInput, WaveformInput
from mmjax.data.clean import BadInput, read_example
from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data
from mmjax.data.sources import cifar10_builder, emoji_builder, fsdd, mnist, pairs
from mmjax.data.sources.cifar10 import CLASSES, Cifar10
from mmjax.data.sources.emoji import GROUPS
from mmjax.errors import UserError

SECONDS = 10  # of computing; six times as many of waiting, since tests share a machine
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
VALUES = [None, True, [], {}, "", "x", "\ud800", -1, 0.5, 10**30, 2**63, ["x"] * 3, {"x": 1}, "../..", "/dev/zero"]


class Hang(BaseException):
    """It took too long. (Not an Exception: what is tested catches those.)"""


# What is damaged: small valid files.


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    return cv2.imencode(kind, pixels if kind != ".pgm" else pixels[..., 0])[1].tobytes()


def recording(kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(4000), 8000, format=kind)
    return file.getvalue()


def packed_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(4):
            archive.writestr(f"emoji_u{index}.png", picture(".png"))
        inside = f"gemoji-{emoji_builder.GEMOJI}"
        listed = "# group: Flags\n1F600 ; fully-qualified     # \U0001f600 E1.0 grinning face\n"
        archive.writestr(f"{inside}/vendor/unicode-emoji-test.txt", listed)
        archive.writestr(f"{inside}/db/emoji.json", json.dumps([{"emoji": "\U0001f600", "tags": ["smile"]}]))
    return file.getvalue()


def packed_tar(contents: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def photographs(split: str) -> dict[str, bytes]:
    return {f"{split}/{name}/{index}.jpg": picture(".jpg") for name in CLASSES for index in range(10)}


def emoji_table() -> bytes:
    row = {"group": GROUPS[0], "tags": ["a", "b"], "skin_tone": False}
    rows = [{"file": f"emoji_u{index}.png", "name": f"face {index}", "split": "train", **row} for index in range(4)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs_table() -> bytes:
    lines = [f"{split},train,{index},3,3_theo_{index}.wav,77" for index, split in enumerate(("train", "val", "test"))]
    return gzip.compress("\n".join(["split,mnist_file,mnist_index,label,fsdd_file,noise_seed", *lines]).encode())


# What reads them.


def emoji_pictures(path: Path) -> object:
    return emoji_builder.read_pictures(path, "", [f"emoji_u{index}.png" for index in range(4)])


def emoji_rows(path: Path) -> object:
    rows = emoji_builder.read_table(path)
    return list(emoji_builder.examples(rows, {row.file: b"" for row in rows})), [row.name.encode() for row in rows]


def by(*inputs) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        found = []
        for input in inputs:
            try:
                found.append(input.read(path.read_bytes(), None))
            except BadInput as error:
                found.append(error)
        return found

    return read


ROW = bytes([3]) + bytes(3072)
BATCHES = {"data_batch_1.bin": ROW * 3, "test_batch.bin": ROW}
CASES: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    **{
        kind: (lambda kind=kind: picture(f".{kind}"), by(ImageInput(size=8)))
        for kind in ("png", "jpg", "bmp", "pgm", "ppm", "gif", "webp", "tiff")
    },
    **{
        kind: (lambda kind=kind: recording(kind), by(SpectrogramInput(), WaveformInput(rate=11_025)))
        for kind in ("WAV", "FLAC", "OGG")
    },
    "fsdd": (lambda: recording("WAV"), lambda path: fsdd.decode(fsdd.folder_reader(path.parent)(path.name))),
    "zip": (packed_zip, emoji_pictures),
    "gemoji": (packed_zip, emoji_builder.read_gemoji),
    "table": (emoji_table, emoji_rows),
    "tar.gz": (
        lambda: packed_tar(photographs("train"), "w:gz"),
        lambda path: cifar10_builder.read_pictures(path, "train"),
    ),
    "tar": (lambda: packed_tar(photographs("train"), "w"), lambda path: cifar10_builder.read_pictures(path, "train")),
    "tar.xz": (lambda: packed_tar(BATCHES, "w:xz"), cifar10_builder.read_binary),
    "binary": (lambda: packed_tar(BATCHES, "w"), cifar10_builder.read_binary),
    "idx": (lambda: gzip.compress(bytes.fromhex("00000801 00000004 03010200")), mnist.read_labels),
    "idx3": (
        lambda: gzip.compress(bytes.fromhex("00000803 00000002 0000001c 0000001c") + bytes(2 * 784)),
        mnist.read_pictures,
    ),
    "pairs": (pairs_table, pairs.read_digit_pairs),
}


# How they are damaged.


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: bits flipped, numbers made extreme, parts cut, doubled or filled with noise."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Headers are where it hurts.
        place = int(rng.integers(min(len(changed), 64) if rng.random() < 0.5 else len(changed))) if changed else 0
        match rng.integers(6):
            case 0:
                changed[place : place + 1] = rng.bytes(1)
            case 1:
                value, size = EXTREMES[rng.integers(len(EXTREMES))], int(rng.choice([1, 2, 4]))
                order = "big" if rng.random() < 0.5 else "little"
                changed[place : place + size] = (value % 256**size).to_bytes(size, order)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + int(rng.integers(1, 20))]
            case 4:
                changed[place:place] = changed[place : place + int(rng.integers(1, 200))]
            case 5:
                changed[place : place + 8] = rng.bytes(8)
    return bytes(changed)


def damage_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Another value, or none, somewhere in the tree."""
    tree = json.loads(content)
    places = [(part, key) for part in _parts(tree) for key in (part if isinstance(part, dict) else range(len(part)))]
    part, key = places[rng.integers(len(places))]
    if rng.random() < 0.3:
        del part[key]
    else:
        part[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(tree).encode()


def _parts(tree: object) -> Iterator[dict | list]:
    if isinstance(tree, dict | list):
        yield tree
        for below in tree.values() if isinstance(tree, dict) else tree:
            yield from _parts(below)


@pytest.fixture
def count(request) -> int:
    """How many files of each kind are damaged."""
    return -(-request.config.getoption("--damaged-files") // (len(CASES) + 3))


def attempt(path: Path, read: Callable[[Path], object], label: str) -> None:
    """Reads a file, which is to be used or refused in one line, and within `SECONDS`."""

    def ring(number, frame):
        raise Hang

    line, timers = "", {signal.ITIMER_PROF: SECONDS, signal.ITIMER_REAL: 6 * SECONDS}
    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    try:
        read(path)
    except (BadInput, UserError) as error:
        line = str(error)
    except (Exception, Hang) as error:
        pytest.fail(f"{label}: {type(error).__name__}: {error}; the file is {path}")
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "\n" not in line, f"{label}: {line}"


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files(kind, count, tmp_path, capfd):
    make, read = CASES[kind]
    content, path = make(), tmp_path / "3_theo_0.wav"
    path.write_bytes(content)
    read(path)
    for seed in range(count):
        path.write_bytes(damage(content, np.random.default_rng(seed)))
        attempt(path, read, f"{kind} {seed}")
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A built data set."""
    raw, data_dir = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    (raw / "cifar10").mkdir()
    for split, name in cifar10_builder.ARCHIVES.items():
        (raw / "cifar10" / name).write_bytes(packed_tar(photographs(split), "w:gz"))
    Cifar10().prepare(str(data_dir), str(raw))
    return data_dir


DATA = Data(
    source=Cifar10(),
    inputs={"image": ImageInput(size=8), "label": LabelInput(names=CLASSES), "text": TextInput(length=40)},
)


def read_data(folder: Path) -> None:
    """As a run does: a look at all splits, then every example."""
    DATA.check_fields(str(folder))
    records = DATA.open(str(folder), "validation")
    for index in range(len(records)):
        try:
            fields = read_example(records, index)
            for name, input in DATA.inputs.items():
                if name in fields:
                    input.read(fields[name], None)
        except BadInput:
            continue


@pytest.mark.parametrize("pattern", ["dataset_info.json", "features.json", "*-validation.array_record*"])
def test_damaged_data_sets(pattern, count, built, tmp_path, capfd):
    data_dir = tmp_path / "data"
    shutil.copytree(built, data_dir)
    (path,) = data_dir.rglob(pattern)
    content = path.read_bytes()
    read_data(data_dir)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        json_too = path.suffix == ".json" and rng.random() < 0.7
        path.write_bytes(damage_json(content, rng) if json_too else damage(content, rng))
        attempt(data_dir, read_data, f"{pattern} {seed}")
    assert "Traceback" not in capfd.readouterr().err
