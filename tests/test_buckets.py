"""Paths in buckets, against servers on loopback: files, locks, files that grow, networks that fail."""

import http.server
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from mmjax import buckets
from mmjax.buckets import RETRIES, below, find_files, leased, local_copy, move, read_range
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.recognise import recognise
from mmjax.errors import UserError
from mmjax.files import local_path, read_regular, to_path, write_atomic
from mmjax.growing_file import MOST_PARTS, GrowingFile, read_growing, rewrite_growing
from tests.servers import answering, gcs_server, s3_server


@pytest.fixture(scope="module", params=["gs", "s3", "memory"])
def place(request):
    """A folder in a bucket."""
    if request.param == "memory":
        yield to_path("memory://bucket/folder")
        return
    server = {"gs": gcs_server, "s3": s3_server}[request.param]
    with server("bucket") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem(request.param).clear_instance_cache()
        yield to_path(f"{request.param}://bucket/folder")
        fsspec.filesystem(request.param).clear_instance_cache()


def test_files_are_read_and_written(place):
    folder = place / "files"
    write_atomic(folder / "a" / "one.txt", "first")
    write_atomic(folder / "a" / "one.txt", "first again")
    write_atomic(folder / "two.bin", b"\x00\x01\x02\x03")
    assert read_regular(folder / "a" / "one.txt") == b"first again"
    assert read_range(folder / "two.bin", 1, 3) == b"\x01\x02"
    assert {name: size for name, (size, _) in find_files(folder).items()} == {"a/one.txt": 11, "two.bin": 4}
    write_atomic(folder / "empty", b"")
    assert read_regular(folder / "empty") == b""
    (folder / "empty").unlink()
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(folder / "a" / "one.txt", 4)
    with pytest.raises(FileNotFoundError):
        read_regular(folder / "missing")
    move(folder / "a", folder / "b")
    assert set(find_files(folder)) == {"b/one.txt", "two.bin"}


def test_a_changed_object_has_another_version(place):
    file = place / "versions" / "file"
    write_atomic(file, "aaaa")
    before = find_files(place / "versions")["file"]
    time.sleep(0.01)
    write_atomic(file, "bbbb")
    after = find_files(place / "versions")["file"]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_what_grows_is_read_in_order(place):
    path = place / "grows" / "lines"
    file, lines = GrowingFile(path), []
    for number in range(MOST_PARTS + 20):
        lines.append(b"line %d\n" % number)
        file.append(lines[-1])
        if number % 7 == 0:
            lines[-1] = b"line %d, a longer one\n" % number
            file.replace_last(lines[-1])
    assert read_growing(path) == b"".join(lines)
    file.close()
    assert path.read_bytes() == b"".join(lines)
    assert set(find_files(place / "grows")) == {"lines"}

    # Another session goes on, and may replace the last line of the one before.
    file = GrowingFile(path, len(lines[-1]))
    file.replace_last(b"other\n")
    file.append(b"more\n")
    lines[-1:] = [b"other\n", b"more\n"]
    assert read_growing(path) == b"".join(lines)
    rewrite_growing(path, b"cut\n")
    assert read_growing(path) == b"cut\n"


def test_a_writer_that_was_killed_leaves_every_line(place):
    path = place / "killed" / "lines"
    file = GrowingFile(path)
    file.append(b"one\n")
    file.append(b"two\n")
    # Killed when the parts were put together and not yet removed: none is read twice.
    write_atomic(path, b"one\ntwo\n")
    assert read_growing(path) == b"one\ntwo\n"
    GrowingFile(path).append(b"three\n")
    assert read_growing(path) == b"one\ntwo\nthree\n"


def test_a_lock_is_held_by_one(place):
    lock = place / "locks" / ".lock"
    with leased(lock, "taken", seconds=0.8):
        with pytest.raises(UserError, match=r"^taken \(its lock .* is held by .*, process \d+; .* is free in \d+ s\)$"):
            leased(lock, "taken").__enter__()
        time.sleep(1.2)  # renewed meanwhile
        with pytest.raises(UserError, match=r"^taken"):
            leased(lock, "taken").__enter__()
    assert not lock.exists()
    with leased(lock, "taken"):
        pass


def test_a_lock_of_the_dead_is_free(place):
    lock = place / "locks" / ".dead"
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    here = {"host": socket.gethostname(), "process": process.pid, "token": "x", "until": time.time() + 1000}
    write_atomic(lock, json.dumps(here))
    with leased(lock, "taken"):
        pass
    write_atomic(lock, json.dumps(here | {"host": "another", "until": time.time() + 1000}))
    with pytest.raises(UserError, match="taken"):
        leased(lock, "taken").__enter__()
    write_atomic(lock, json.dumps(here | {"host": "another", "until": time.time() - 1}))
    with leased(lock, "taken"):
        pass


def test_only_one_process_creates_a_lock(place, monkeypatch):
    lock = place / "locks" / ".race"
    with leased(lock, "taken"):
        # Both saw that there was none.
        monkeypatch.setattr(buckets, "_remove_if_free", lambda path, taken: None)
        with pytest.raises(UserError, match="taken"):
            leased(lock, "taken").__enter__()
    path = place / "locks" / ".once"
    path.fs.pipe_file(path.path, b"", mode="create")
    with pytest.raises(FileExistsError):
        path.fs.pipe_file(path.path, b"", mode="create")


def test_a_copy_is_made_once_for_each_version(place, tmp_path):
    folder = place / "copied"
    write_atomic(folder / "a" / "x", "first")
    copy = local_copy(folder, tmp_path)
    assert (copy / "a" / "x").read_text() == "first"
    assert local_copy(folder, tmp_path) == copy
    time.sleep(0.01)
    write_atomic(folder / "a" / "x", "other")
    assert (local_copy(folder, tmp_path) / "a" / "x").read_text() == "other"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"),
        ("x/./b/../a.png", "x/a.png"),
        ("memory://bucket/data/a.png", "a.png"),
        ("../a.png", None),
        ("x/../../a.png", None),
        ("/a.png", None),
        ("memory://bucket/other/a.png", None),
        ("memory://bucket/data/../other/a.png", None),
        ("gs://bucket/data/a.png", None),
    ],
)
def test_no_name_leads_out_of_a_folder(name, found):
    root = to_path("memory://bucket/data")
    path = below(root, name)
    assert (path if path is None else str(path)) == (None if found is None else f"memory://bucket/data/{found}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "ftp:// is not supported; use a local path or one of gs://, s3://, memory://"),
        ("s3://key:s3cr3t@bucket/x", "s3:// path holds credentials"),
        ("gs://bucket/x?token=s3cr3t", "gs:// path holds credentials"),
        ("gs://bucket/../x", "has no .."),
    ],
)
def test_other_places_are_refused(url, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        to_path(url)
    assert "s3cr3t" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket needs the package gcsfs: pip install 'mmjax\[gcs\]'"):
        to_path("gs://bucket")


def test_some_places_are_local_only():
    with pytest.raises(UserError, match="gs:// is not possible here: give a local path"):
        local_path("gs://bucket/x")


def read_from(url: str, monkeypatch) -> Path:
    """A path of a bucket that this server is to have."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    fsspec.filesystem("gs").clear_instance_cache()
    return to_path("gs://bucket/file")


def send(handler: http.server.BaseHTTPRequestHandler, status: int, content: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def test_a_network_that_stalls_is_tried_again(monkeypatch):
    asked = []

    def answer(handler):
        asked.append(handler.path)
        if len(asked) <= 2:
            time.sleep(3)
        send(handler, 200, b"content")

    monkeypatch.setattr(buckets, "STALL_SECONDS", 0.5)
    with answering(answer) as url:
        before = RETRIES.count
        assert read_range(read_from(url, monkeypatch)) == b"content"
        assert RETRIES.count == before + 2


def test_a_service_that_fails_is_named_after_some_tries(monkeypatch):
    monkeypatch.setattr(buckets, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(buckets, "TRIES", 2)
    with answering(lambda handler: send(handler, 503, b"busy")) as url:
        before = RETRIES.count
        with pytest.raises(UserError, match="gs://bucket/file could not be read in 2 tries"):
            read_range(read_from(url, monkeypatch))
        assert RETRIES.count == before + 1


def test_what_may_not_be_read_is_not_tried_again(monkeypatch):
    asked = []

    def answer(handler):
        asked.append(handler.path)
        send(handler, 403, json.dumps({"error": {"message": "no access"}}).encode())

    with answering(answer) as url, pytest.raises(PermissionError, match="gs://bucket/file may not be read"):
        read_range(read_from(url, monkeypatch))
    assert len(asked) == 1


def test_a_bucket_that_may_not_be_read_is_named(monkeypatch):
    forbidden = json.dumps({"error": {"code": 403, "message": "no access"}}).encode()
    with answering(lambda handler: send(handler, 403, forbidden)) as url:
        path = read_from(url, monkeypatch)
        with pytest.raises(UserError, match=r"gs://bucket/file: it cannot be read .*Forbidden.*check the credentials"):
            recognise(str(path))
        with pytest.raises(UserError, match=r"source\.path=gs://bucket/file: it cannot be read"):
            Manifest(path=str(path)).names  # noqa: B018


def test_importing_needs_no_service():
    code = "import sys, mmjax, mmjax.files; print(sorted({'upath', 'gcsfs', 's3fs', 'fsspec'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert ran.stdout.strip() == "[]"
