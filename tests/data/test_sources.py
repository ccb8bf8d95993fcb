"""The rule of the pairing tables, downloads against a local server, and the raw formats."""

import functools
import hashlib
import http.server
import io
import threading
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mmjax.data.sources import TABLE, fsdd, mnist
from mmjax.data.sources.av_digits import AvDigits
from mmjax.data.sources.base import Source, source_name
from mmjax.data.sources.pairs import PAIRINGS, make_digit_pairs, read_digit_pairs
from mmjax.errors import UserError


def test_table_of_sources():
    names = {"av_digits", "cifar10", "digit_strings", "emoji", "interactions", "scenes"}
    assert {source_name(cls) for cls in TABLE.values()} == names
    for cls in TABLE.values():
        assert issubclass(cls, Source)
        assert cls().splits == ("train", "validation", "test")


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_rule_makes_the_published_tables(shared_data, pairing):
    labels = {file: mnist.read_labels(shared_data / "mnist" / name) for file, name in mnist.LABELS.items()}
    made = make_digit_pairs(pairing, labels["train"], labels["t10k"])
    published = read_digit_pairs(shared_data / "av_digits" / f"pairs_{pairing}.csv.gz")
    assert made == published
    assert {split: len(rows) for split, rows in made.items()} == {"train": 55_000, "validation": 5_000, "test": 10_000}
    used = {split: {pair.fsdd_file for pair in rows} for split, rows in made.items()}
    assert not used["train"] & used["validation"] | used["train"] & used["test"] | used["validation"] & used["test"]


def test_checksums_are_those_of_the_published_files(shared_data):
    lines = (Path(fsdd.__file__).with_name("checksums.tsv")).read_text().splitlines()
    listed = {url: (int(size), checksum) for url, size, checksum, _ in (line.split("\t") for line in lines)}
    files = [*mnist.PICTURES.values(), *mnist.LABELS.values()]
    assert set(listed) == {mnist.URL + name for name in files}
    for name in files:
        content = (shared_data / "mnist" / name).read_bytes()
        assert listed[mnist.URL + name] == (len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def archive(shared_data) -> bytes:
    """FSDD's repository as its host packs it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in fsdd.recording_names():
            path = f"free-spoken-digit-dataset-{fsdd.COMMIT}/recordings/{name}"
            file.writestr(path, (shared_data / "fsdd" / "recordings" / name).read_bytes())
        file.writestr("../../outside.txt", "an archive may name what it likes")
    return content.getvalue()


@pytest.fixture
def server(shared_data, archive, tmp_path, monkeypatch):
    """The original places on this machine: a folder of files that is served under the URLs that the builder asks."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in [*mnist.PICTURES.values(), *mnist.LABELS.values()]:
        (folder / name).symlink_to(shared_data / "mnist" / name)
    (folder / "fsdd.zip").write_bytes(archive)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(mnist, "URL", url)
        monkeypatch.setattr(fsdd, "URL", url + "fsdd.zip")
        yield folder
        server.shutdown()


def test_downloads_give_what_the_folder_gives(server, shared_data, tmp_path):
    import tensorflow_datasets as tfds

    from mmjax.data.sources.av_digits_builder import AvDigitsBuilder

    builder = AvDigitsBuilder(data_dir=tmp_path / "data", config="speaker_disjoint_noisy")
    downloaded = builder._download(tfds.download.DownloadManager(download_dir=tmp_path / "downloads"))
    given = builder._read_folder(shared_data)
    assert downloaded.digest() == given.digest()
    assert len(given.recordings) == 3000
    assert not list(tmp_path.rglob("outside.txt"))
    assert not list(tmp_path.rglob("*.wav"))


def test_other_recordings_are_refused(server, archive, tmp_path):
    name = f"free-spoken-digit-dataset-{fsdd.COMMIT}/recordings/0_theo_0.wav"
    start = archive.index(name.encode()) + len(name) + 100
    (server / "fsdd.zip").write_bytes(archive[:start] + bytes([archive[start] ^ 1]) + archive[start + 1 :])
    with pytest.raises(UserError, match=r"Bad CRC-32 .*delete it and run the command again"):
        AvDigits().prepare(str(tmp_path / "data"))
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(content, "w") as after:
        for item in before.namelist():
            after.writestr(item, before.read(item) if item != name else before.read(item.replace("_0.wav", "_1.wav")))
    (server / "fsdd.zip").write_bytes(content.getvalue())
    (server.parent / "other.zip").write_bytes(content.getvalue())
    with pytest.raises(UserError, match="are not those of"):
        fsdd.archive_reader(server.parent / "other.zip")


def test_a_file_of_another_checksum_is_refused(server, tmp_path):
    from mmjax.data.sources import building
    from mmjax.data.sources.av_digits_builder import AvDigitsBuilder

    name = mnist.PICTURES["train"]
    content = bytearray((server / name).read_bytes())
    expected = AvDigitsBuilder.url_infos["https://storage.googleapis.com/cvdf-datasets/mnist/" + name]
    content[1000] ^= 1
    (server / name).unlink()
    (server / name).write_bytes(content)

    class Strict(AvDigitsBuilder):
        url_infos = {mnist.URL + name: expected}  # noqa: RUF012

    with pytest.raises(UserError, match=f"a download failed .*{name}.*wrong checksum") as caught:
        building.build(Strict(data_dir=tmp_path / "data", config="speaker_disjoint_clean"))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_a_server_that_lacks_a_file_is_one_clear_line(server, tmp_path):
    (server / mnist.LABELS["train"]).unlink()
    with pytest.raises(UserError, match=r"a download failed .*train-labels.*404.*manual_dir") as caught:
        AvDigits().prepare(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def wav(samples: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return content.getvalue()


def test_recordings_that_are_not_whole_are_none():
    samples = np.arange(-500, 500)
    np.testing.assert_array_equal(fsdd.decode(wav(samples)), samples)
    for broken in (
        b"",
        b"RIFF",
        wav(samples)[:40],
        wav(samples)[:-1],
        wav(samples, rate=16000),
        wav(samples, channels=2),
        wav(samples[:0]),
    ):
        assert fsdd.decode(broken) is None


def test_names_of_recordings(shared_data):
    assert set(fsdd.recording_names()) == {path.name for path in (shared_data / "fsdd" / "recordings").iterdir()}
    assert fsdd.parse_name("6_theo_13.wav") == (6, "theo", 13)
    assert fsdd.parse_name("../6_theo_13.wav") is None
