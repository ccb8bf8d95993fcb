"""av_digits built from the first rows of the real tables, against the raw files and an independent noisy recipe."""

import csv
import gzip
import os
import pickle
import shutil
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from mmjax.data.sources import building, mnist, noise
from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.digit_strings import WORDS, DigitStrings
from mmjax.errors import UserError

ROWS = {"train": 60, "val": 12, "test": 15}


@pytest.fixture(scope="module")
def raw(shared_data, tmp_path_factory) -> Path:
    """A manual_dir with the real files and tables of few rows."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "mnist").symlink_to(shared_data / "mnist")
    (folder / "fsdd").symlink_to(shared_data / "fsdd")
    (folder / "av_digits").mkdir()
    for pairing in ("recording_disjoint", "speaker_disjoint"):
        rows = read_table(shared_data / "av_digits" / f"pairs_{pairing}.csv.gz")
        write_table(folder / "av_digits" / f"pairs_{pairing}.csv.gz", rows)
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    """The first rows of each split."""
    left, rows = dict(ROWS), []
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if left[row["split"]] > 0:
                left[row["split"]] -= 1
                rows.append(row)
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory) -> str:
    """A data_dir with two variants."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    AvDigits(noise="clean").prepare(data_dir, str(raw))
    AvDigits(noise="noisy").prepare(data_dir, str(raw))
    return data_dir


@pytest.fixture(scope="module")
def pictures(raw) -> dict[str, np.ndarray]:
    return {file: mnist.read_pictures(raw / "mnist" / name) for file, name in mnist.PICTURES.items()}


def wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(10**9), "<i2")


def rows_of(raw: Path, split: str) -> list[dict[str, str]]:
    rows = read_table(raw / "av_digits" / "pairs_recording_disjoint.csv.gz")
    return [row for row in rows if row["split"] == {"validation": "val"}.get(split, split)]


def test_clean_examples_are_the_raw_files_in_the_tables_order(built, raw, pictures):
    for split in AvDigits().splits:
        records, rows = AvDigits(noise="clean").open(built, split), rows_of(raw, split)
        assert len(records) == len(rows)
        for index, row in enumerate(rows):
            example = records[index]
            picture = pictures[row["mnist_file"]][int(row["mnist_index"])]
            np.testing.assert_array_equal(example["image"], picture[..., None])
            np.testing.assert_array_equal(
                example["speech"].samples, wav(raw / "fsdd" / "recordings" / row["fsdd_file"])
            )
            assert example["speech"].rate == 8000
            assert example["label"] == int(row["label"]) == int(row["fsdd_file"][0])
            assert (example["mnist_file"], example["mnist_index"]) == (row["mnist_file"], int(row["mnist_index"]))
            assert example["fsdd_file"] == row["fsdd_file"]
            assert records.id(index) == f"{split}/{index}"


def test_noisy_pictures_are_what_four_components_hold(built, raw, pictures):
    train = np.stack([pictures[row["mnist_file"]][int(row["mnist_index"])] for row in rows_of(raw, "train")])
    reference = PCA(4, svd_solver="full").fit(train.reshape(len(train), -1).astype(np.float64))
    for split in AvDigits().splits:
        records = AvDigits(noise="noisy").open(built, split)
        for index, row in enumerate(rows_of(raw, split)):
            pixels = pictures[row["mnist_file"]][int(row["mnist_index"])].reshape(1, -1)
            expected = reference.inverse_transform(reference.transform(pixels)).clip(0, 255).reshape(28, 28, 1)
            assert np.abs(records[index]["image"] - expected).max() <= 0.51


def test_noisy_speech_is_the_recipe(built, raw):
    """SOURCES.md's recipe written again, sample by sample order by concatenation instead of rolling."""

    def level(name: str) -> np.ndarray:
        samples = wav(raw / "fsdd" / "recordings" / name) / 32768
        scaled = samples * 0.1 / np.sqrt((samples**2).mean())
        return np.concatenate([scaled, np.zeros(8000)])[:8000]

    def shift(samples: np.ndarray, by: int) -> np.ndarray:
        return np.concatenate([samples[len(samples) - by :], samples[: len(samples) - by]])

    for split in ("train", "test"):
        records, rows = AvDigits(noise="noisy").open(built, split), rows_of(raw, split)
        pool = [level(name) for name in sorted({row["fsdd_file"] for row in rows})]
        for index, row in enumerate(rows[:10]):
            rng = np.random.default_rng(int(row["noise_seed"]))
            speech = shift(level(row["fsdd_file"]), rng.integers(1001))
            sound = 0.05 * rng.standard_normal(8000, np.float32).astype(np.float64)
            voices, offsets = rng.integers(len(pool), size=3), rng.integers(8000, size=3)
            for voice, offset in zip(voices, offsets, strict=True):
                sound = sound + shift(pool[voice], offset)
            mixed = 10**-0.5 * speech + sound * 0.1 / np.sqrt((sound**2).mean())
            expected = 32767 * mixed / max(1, np.abs(mixed).max())
            assert np.abs(records[index]["speech"].samples - expected).max() <= 1


def test_levels_of_the_mixture():
    rng = np.random.default_rng(0)
    speech = noise.normalize_level((3000 * rng.standard_normal(6000)).astype(np.int16))
    assert noise.rms(speech[:6000]) == pytest.approx(0.1, rel=1e-4)
    assert not speech[6000:].any()
    pool = np.stack([noise.normalize_level((500 * rng.standard_normal(9000)).astype(np.int16)) for _ in range(5)])
    alone = noise.mix_noise(np.zeros_like(speech), pool, seed=7) / 32767
    assert noise.rms(alone) == pytest.approx(0.1, rel=1e-3)
    part = noise.mix_noise(speech, pool, seed=7) / 32767 - alone
    decibels = 20 * np.log10(noise.rms(part) * np.sqrt(8000 / 6000) / noise.rms(alone))
    assert decibels == pytest.approx(-10, abs=0.02)
    shifts = {int(np.argmax(np.abs(noise.mix_noise(impulse(), pool * 0, seed)))) for seed in range(300)}
    assert 0 <= min(shifts) < 20
    assert 980 < max(shifts) <= 1000


def impulse() -> np.ndarray:
    """A click loud enough to be heard through the white noise."""
    click = np.zeros(8000, np.float32)
    click[0] = 8.0
    return click


def test_loud_mixtures_are_made_quieter_and_silence_stays_silent():
    click = impulse() * 10
    mixed = noise.mix_noise(click, np.zeros((1, 8000), np.float32), seed=0)
    assert np.abs(mixed).max() == 32767
    assert (np.abs(mixed) > 3276).sum() == 1  # the noise went down with the click
    assert not noise.normalize_level(np.zeros(100, np.int16)).any()


def test_four_components_hold_the_documented_share_of_mnists_variance(pictures):
    train = pictures["train"][:55_000]
    components = noise.PrincipalComponents.fit(train)
    pixels = train[::7].reshape(-1, 784) - components.mean
    share = np.square(pixels @ components.directions.T).sum() / np.square(pixels).sum()
    assert share == pytest.approx(0.283, abs=0.005)


def test_a_second_call_builds_nothing(built, raw, monkeypatch):
    monkeypatch.setattr(building, "build", lambda builder: pytest.fail("built again"))
    folder = AvDigits().prepare(built, str(raw))
    assert folder == Path(built, "av_digits", "recording_disjoint_noisy", "1.0.0")


def test_what_is_not_there_names_the_command(built, tmp_path):
    with pytest.raises(UserError, match=r"launch.prepare av_digits pairing=speaker_disjoint noise=clean data_dir="):
        AvDigits(pairing="speaker_disjoint", noise="clean").open(built, "train")
    with pytest.raises(UserError, match=r"mnist/train-images-idx3-ubyte.gz is missing"):
        AvDigits().prepare(str(tmp_path), str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be built"):
        AvDigits().prepare(str(tmp_path / "file"), str(tmp_path))


def test_records_can_be_shared_between_threads_and_pickled(built):
    records = AvDigits().open(built, "train")
    alone = [records[index]["speech"].samples.tobytes() for index in range(len(records))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: records[index % 60]["speech"].samples.tobytes(), range(600)))
    assert together == alone * 10
    again = pickle.loads(pickle.dumps(records))
    assert again[5]["speech"].samples.tobytes() == alone[5]
    assert (again.fingerprint, len(again)) == (records.fingerprint, 60)


def test_fingerprints_differ_between_variants_splits_and_contents(built, raw, shared_data, tmp_path):
    fingerprints = [
        AvDigits(noise=kind).open(built, split).fingerprint
        for kind in ("clean", "noisy")
        for split in ("train", "test")
    ]
    other = tmp_path / "raw"
    shutil.copytree(raw, other, symlinks=True)
    table = other / "av_digits" / "pairs_recording_disjoint.csv.gz"
    rows = read_table(table)
    rows[3]["label"] = "77"  # out of range: kept, and left to the loader to report
    write_table(table, rows)
    AvDigits(noise="clean").prepare(str(tmp_path), str(other))
    records = AvDigits(noise="clean").open(str(tmp_path), "train")
    assert records[3]["label"] == 77
    assert len({*fingerprints, records.fingerprint}) == 5


@pytest.fixture(scope="module")
def damaged(raw, shared_data, tmp_path_factory) -> Path:
    """A manual_dir where one recording is cut short, one no WAV file, one gone, and MNIST's test file ends early."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(raw / "av_digits", folder / "av_digits")
    recordings = folder / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    for row in rows_of(raw, "train") + rows_of(raw, "validation") + rows_of(raw, "test"):
        (recordings / row["fsdd_file"]).write_bytes(
            (shared_data / "fsdd" / "recordings" / row["fsdd_file"]).read_bytes()
        )
    short, other, gone = (recordings / rows_of(raw, "train")[index]["fsdd_file"] for index in (0, 1, 2))
    short.write_bytes(short.read_bytes()[:-1000])
    other.write_bytes(b"not a sound")
    gone.unlink()
    shutil.copytree(shared_data / "mnist", folder / "mnist")
    file = folder / "mnist" / mnist.PICTURES["t10k"]
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole[:1500])
    return folder


@pytest.mark.parametrize("kind", ["clean", "noisy"])
def test_broken_raw_files_leave_their_fields_out_and_nothing_else(damaged, built, tmp_path, capsys, kind):
    source = AvDigits(noise=kind)
    source.prepare(str(tmp_path), str(damaged))
    said = capsys.readouterr().err
    assert "3 recordings cannot be read" in said
    train, whole = source.open(str(tmp_path), "train"), source.open(built, "train")
    for index in range(3):
        assert "speech" not in train[index]
        np.testing.assert_array_equal(train[index]["image"], whole[index]["image"])
    for index in range(3, 60):
        assert "speech" in train[index]
        if kind == "clean":
            np.testing.assert_array_equal(train[index]["speech"].samples, whole[index]["speech"].samples)
    test = source.open(str(tmp_path), "test")
    seen = ["image" in test[index] for index in range(len(test))]
    assert seen[0]
    assert seen == sorted(seen, reverse=True)
    assert f"{seen.count(False)} examples have no image" in said
    assert seen.count(False) > 0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("mnist/train-images-idx3-ubyte.gz", b"nonsense", "cannot be read"),
        ("mnist/train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x01\0\0\0\1\7"), "not an IDX file of pictures"),
        ("av_digits/pairs_recording_disjoint.csv.gz", gzip.compress(b"split,label\ntrain,3\n"), r"line 2: .*fsdd_file"),
        ("av_digits/pairs_recording_disjoint.csv.gz", b"nonsense", "not a table of pairs"),
    ],
    ids=["no gzip", "no pictures", "no column", "no table"],
)
def test_files_that_are_something_else_are_one_clear_line(raw, tmp_path, file, content, message):
    folder = tmp_path / "raw"
    shutil.copytree(raw / "av_digits", folder / "av_digits")
    shutil.copytree(raw / "mnist", folder / "mnist")
    (folder / "fsdd").symlink_to(raw / "fsdd")
    (folder / file).unlink()
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        AvDigits().prepare(str(tmp_path / "data"), str(folder))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


KILLED = """
import os, sys
from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.digit_strings import WORDS, DigitStrings
from mmjax.data.sources import av_digits_builder
make = av_digits_builder.CleanExamples.__call__
def die(self, split, row):
    if split == "validation" and row == 5:
        os.kill(os.getpid(), 9)
    return make(self, split, row)
av_digits_builder.CleanExamples.__call__ = die
AvDigits(noise="clean").prepare(*sys.argv[1:])
"""


def test_a_killed_build_counts_for_nothing(raw, built, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(raw)]
    assert subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2]).returncode == -9
    assert list(tmp_path.rglob("incomplete.*/*.array_record*"))
    with pytest.raises(UserError, match="there is no av_digits with pairing="):
        AvDigits(noise="clean").open(str(tmp_path), "train")
    AvDigits(noise="clean").prepare(str(tmp_path), str(raw))
    assert (
        AvDigits(noise="clean").open(str(tmp_path), "train").fingerprint
        == AvDigits(noise="clean").open(built, "train").fingerprint
    )
    assert not list(tmp_path.rglob("incomplete.*"))


def test_a_full_disk_is_one_clear_line(raw, tmp_path):
    """A limit on file sizes stands in for a full disk."""
    words = f"av_digits noise=clean manual_dir={raw} data_dir={tmp_path}"
    command = f"ulimit -f 100; exec {sys.executable} -m launch.prepare {words}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 2
    assert "cannot be built: write() failed" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.array_record*"))


def test_damaged_files_on_disk(built, tmp_path):
    shutil.copytree(built, tmp_path / "data")
    folder = tmp_path / "data" / "av_digits" / "recording_disjoint_clean" / "1.0.0"
    (file,) = folder.glob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    records = AvDigits(noise="clean").open(str(tmp_path / "data"), "train")
    assert sum(not records[index] for index in range(60)) == 1
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged: delete"):
        AvDigits(noise="clean").open(str(tmp_path / "data"), "train")
    os.remove(file)
    with pytest.raises(UserError, match="is damaged: delete"):
        AvDigits(noise="clean").open(str(tmp_path / "data"), "train")


def test_digits_can_be_strung(built):
    single, strung = AvDigits(noise="clean").open(built, "test"), DigitStrings().open(built, "test")
    pictures = {single[row]["image"].tobytes(): single[row]["label"] for row in range(len(single))}
    for example in (strung[index] for index in range(20)):
        parts = [example["image"][:, start : start + 28] for start in range(0, 112, 28)]
        digits = [pictures[part.tobytes()] for part in parts if part.any()]
        assert example["digits"] == digits
        assert example["text"] == " ".join(WORDS[digit] for digit in digits)
        assert 0.2 < len(example["speech"].samples) / 8000 < 10
