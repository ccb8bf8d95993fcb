"""Disks that are full or read-only when a test wants them to be."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path


class Disk:
    """A small disk that a test can fill up and empty again, or make read-only."""

    def __init__(self, path: Path):
        self.path = path

    def fill(self):
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self):
        (self.path / "filler").unlink()

    def protect(self):
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)


class PretendDisk(Disk):
    """One for who may not mount: all but Orbax's writing of arrays is refused as such a disk would refuse it."""

    refusal: int | None = None

    def __init__(self, path: Path, monkeypatch):
        super().__init__(path)
        opened = Path.open

        def open_file(file, mode="r", *args, **options):
            if self.refusal is not None and mode[0] != "r" and path in file.parents:
                raise OSError(self.refusal, os.strerror(self.refusal))
            return opened(file, mode, *args, **options)

        monkeypatch.setattr(Path, "open", open_file)

    def fill(self):
        self.refusal = errno.ENOSPC

    def free(self):
        self.refusal = None

    def protect(self):
        self.refusal = errno.EROFS
