"""Paths as they are typed, files that are read and written whole, locks, and the names of steps."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.errors import UserError
from mmjax.files import check_regular_file, local_path, locked, read_json, read_regular, step_of, write_atomic

ROOT = Path(__file__).resolve().parents[1]

HOLD = """
import sys, time
from pathlib import Path
from mmjax.files import locked
with locked(Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    path = tmp_path / "run" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), locked(path, "in use"):
        pass
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with locked(path, "in use"), pytest.raises(UserError, match="in use"), locked(path, "in use"):
            pass


def test_links_and_special_files_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    check_regular_file(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("fifo", "link", ".", "nothing"):
        with pytest.raises(OSError, match=r"not a regular file|No such file"):
            check_regular_file(tmp_path / name)


def test_names_of_steps():
    assert [step_of(name) for name in ("0", "7", "2147483647")] == [0, 7, 2147483647]
    strange = ("", "007", "²", "١", "-1", "+1", "1.0", "1\n", " 1", "2147483648", "9" * 20, "9" * 5000)
    assert [step_of(name) for name in strange] == [None] * len(strange)


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs/a") == tmp_path / "runs" / "a"
    assert local_path(Path("runs/~b")) == Path("runs/~b")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("~nobody-of-this-name/runs", "there is no such user's home directory; write the path in full"),
        ("runs/\0", "'runs/\\x00' cannot be a path here: it holds a NUL byte"),
        ("runs/\udcff", "'runs/\\udcff' cannot be a path here: it holds a NUL byte or bytes that are not UTF-8"),
        ("r" * 5000, "File name too long"),
    ],
)
def test_what_is_no_path_is_said_in_a_line(typed, says):
    with pytest.raises(UserError) as error:
        local_path(typed)
    assert says in str(error.value)
    assert len(str(error.value)) < 200


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", 4)
    for path, says in (("/dev/zero", "not a reg"), (tmp_path / "pipe", "not a reg"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=says):
            read_regular(path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 10**6, b"1" * 5000])
def test_what_is_not_json_is_a_value_error(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 (in the words of whoever parses it)
        read_json(tmp_path / "file")


def test_the_mode_is_that_of_the_file_that_was_written(tmp_path):
    path = write_atomic(tmp_path / "job.sh", "#!", 0o755)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert write_atomic(path, "no script").read_text() == "no script"
    assert path.stat().st_mode & stat.S_IXUSR == 0


def test_nothing_but_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        mode = (tmp_path / name).stat().st_mode
        with pytest.raises(UserError, match=f"cannot write .*{name}: the existing path is not a regular file"):
            write_atomic(tmp_path / name, "x", 0o755)
        assert (tmp_path / name).stat().st_mode == mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
