"""Locks, special files and the names of steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.errors import UserError
from mmjax.files import locked, read_regular, step_of

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


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_text("x")
    assert read_regular(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("fifo", "link", ".", "nothing"):
        with pytest.raises(OSError, match=r"not a regular file|No such file"):
            read_regular(tmp_path / name)


def test_names_of_steps():
    assert [step_of(name) for name in ("0", "7", "2147483647")] == [0, 7, 2147483647]
    strange = ("", "007", "²", "١", "-1", "+1", "1.0", "1\n", " 1", "2147483648", "9" * 20, "9" * 5000)
    assert [step_of(name) for name in strange] == [None] * len(strange)
