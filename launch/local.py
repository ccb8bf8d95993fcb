"""Run a command in several processes: `launch.local processes=2 devices=4 -- train ...`.

Each process has its own simulated CPU devices, and they make one mesh over Gloo. Their lines come out with the number
of their process in front. When one fails the others are ended; SIGTERM and SIGINT are passed on to all. Exit codes: 0
if all processes end so, 75 if any was interrupted and the rest ended well, else the code of the process that failed
first. The last line on standard output is the lead's.
"""

import codecs
import contextlib
import ctypes
import dataclasses
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, TextIO

import chz

from mmjax.errors import UserError

from . import command_line, request
from .command_line import INTERRUPTED

FORCED_DEVICES = "--xla_force_host_platform_device_count"
# The most processes, and simulated devices of each.
MOST = 1024
# Without a terminal, the progress bar is a line every so many seconds.
BAR_SECONDS = 30


@chz.chz
class Local:
    """Processes on this machine that make one mesh."""

    processes: int = chz.field(default=2, doc="how many processes")
    devices: int = chz.field(default=1, doc="simulated CPU devices of each process")
    grace: float = chz.field(default=30.0, doc="seconds the others have to end after one has failed or stopped")

    @chz.validate
    def _counts(self):
        for name, value in (("processes", self.processes), ("devices", self.devices)):
            if not 1 <= value <= MOST:
                raise UserError(f"{name}={value}: there must be 1 to {MOST}")


class Screen:
    """Prints the lines of all processes whole, and keeps the lead's progress bar below them."""

    def __init__(self):
        self.result = ""  # the lead's last line on standard output
        self._lock = threading.Lock()
        self._bar = ""
        self._next_bar = time.monotonic() + BAR_SECONDS

    def line(self, process: int, text: str, stream: TextIO) -> None:
        """Prints a line of a process."""
        with self._lock:
            if process == 0 and stream is sys.stdout and text.strip():
                self.result = text
            erase, redraw = ("\r\x1b[K", self._bar) if self._bar and sys.stderr.isatty() else ("", "")
            print(erase, end="", file=sys.stderr, flush=True)
            print(f"[process {process}] {text}".rstrip(), file=stream, flush=True)
            print(redraw, end="", file=sys.stderr, flush=True)

    def bar(self, process: int, text: str) -> None:
        """A progress bar that a process rewrites. Only the lead's is shown."""
        if process != 0:
            return
        if sys.stderr.isatty():
            with self._lock:
                self._bar = f"\r[process {process}] {text}\x1b[K"
                print(self._bar, end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next_bar:
            self._next_bar = time.monotonic() + BAR_SECONDS
            self.line(process, text, sys.stderr)

    def end_bar(self, process: int) -> None:
        """Ends a process's progress bar; its last state becomes an ordinary line."""
        if process == 0:
            with self._lock:
                self._bar = ""

    def follow(self, process: int, pipe: IO[bytes], stream: TextIO) -> None:
        """Shows the output of a process until its pipe is closed."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pending = rewritten = ""
        while data := pipe.read1(1 << 16):  # type: ignore[attr-defined]
            *pieces, pending = re.split(r"(?<=[\r\n])", pending + decoder.decode(data))
            for piece in pieces:
                text = piece[:-1]
                if piece.endswith("\r"):
                    rewritten = text or rewritten
                    continue
                if rewritten:
                    self.end_bar(process)
                self.line(process, text or rewritten, stream)
                rewritten = ""
            # tqdm begins each update with the carriage return, so what follows the last one is what is on view.
            if pending and pieces and pieces[-1].endswith("\r"):
                rewritten = pending
                self.bar(process, pending)
        if pending:
            self.end_bar(process)
            self.line(process, pending, stream)


@dataclasses.dataclass
class Processes:
    """The processes, and the exit codes of those that ended, in that order (negative: a signal)."""

    children: list[subprocess.Popen]
    ended: dict[int, int] = dataclasses.field(default_factory=dict)
    signals: list[int] = dataclasses.field(default_factory=list)  # received by the launcher
    killed: set[int] = dataclasses.field(default_factory=set)  # processes that did not end in time

    def signal(self, number: int) -> None:
        """Sends a signal to every process that runs."""
        for child in self.children:
            child.send_signal(number)

    def forward(self, number: int, frame: object) -> None:
        """The handler of signals to the launcher."""
        self.signals.append(number)
        self.signal(number)

    def wait(self, grace: float) -> None:
        """Waits for all; kills the rest `grace` seconds after one has failed or stopped."""
        news: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for index, child in enumerate(self.children):
            threading.Thread(target=lambda i, c: news.put((i, c.wait())), args=(index, child), daemon=True).start()
        deadline = None
        while len(self.ended) < len(self.children):
            try:
                index, code = news.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                deadline = None
                self.killed |= set(range(len(self.children))) - self.ended.keys()
                self.signal(signal.SIGKILL)
                continue
            self.ended[index] = code
            _kill_group(self.children[index].pid)
            if code != 0 and deadline is None and not self.killed:
                deadline = time.monotonic() + grace
                if code != INTERRUPTED:
                    self.signal(signal.SIGTERM)

    def exit_code(self) -> tuple[int, str]:
        """The exit code of the command, and the line that explains a failure."""
        # A process that was stopped before it could handle signals has lost nothing either.
        stopped = {code for number in self.signals for code in (-number, 128 + number)}
        interrupted = INTERRUPTED in self.ended.values()
        for index, code in self.ended.items():
            if code in (0, INTERRUPTED):
                continue
            if self.signals and (code in stopped or index in self.killed):
                interrupted = True
            elif index in self.killed:
                return 128 - code, f"process {index} did not end after the others had stopped, and was killed"
            elif code < 0:
                return 128 - code, f"process {index} was ended by {signal.Signals(-code).name}, and the others with it"
            else:
                return code, f"process {index} failed with exit code {code}, and the others were ended"
        return (INTERRUPTED if interrupted else 0), ""


def run(job: Local, command: list[str]) -> int:
    """Runs `command` in the processes of `job`; returns the exit code."""
    screen = Screen()
    with _reserved_port() as port:
        processes = Processes([_start(job, index, port, command) for index in range(job.processes)])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, processes.forward)
        followers = [
            threading.Thread(target=screen.follow, args=(index, pipe, stream))
            for index, child in enumerate(processes.children)
            for pipe, stream in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        ]
        for follower in followers:
            follower.start()
        processes.wait(job.grace)
        for follower in followers:
            follower.join()
    code, explanation = processes.exit_code()
    if explanation:
        print(f"launch.local: {explanation}", file=sys.stderr)
    elif screen.result:
        print(screen.result)
    return code


def _start(job: Local, index: int, port: int, command: list[str]) -> subprocess.Popen:
    """Starts process `index` in its own process group, so that only we get the terminal's Ctrl-C."""
    prefix, size = f"[process {index}] ", shutil.get_terminal_size()
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(FORCED_DEVICES)]
    environment = os.environ | {
        "XLA_FLAGS": " ".join([*flags, f"{FORCED_DEVICES}={job.devices}"]),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "MMJAX_COORDINATOR": f"127.0.0.1:{port}",
        "MMJAX_PROCESSES": str(job.processes),
        "MMJAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": str(max(20, size.columns - len(prefix))),  # so that a progress bar fits behind the prefix
        "LINES": str(size.lines),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """A free port for the coordinator, reserved: only who asks to share it, as it does, can bind it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None)

    def _die_with_parent() -> None:
        """Has the kernel kill this process when the launcher dies, even of SIGKILL (prctl's PR_SET_PDEATHSIG)."""
        _LIBC.prctl(1, signal.SIGKILL)

else:

    def _die_with_parent() -> None:
        """Only Linux can end a process with its parent."""


def _kill_group(leader: int) -> None:
    """Kills what an ended process has left running, such as data loader workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def main(words: list[str]) -> int:
    """Runs the command line."""
    keys, command = request.split(words)
    description = "Runs the command after -- as many processes on this machine, which make one mesh."
    return command_line.main(
        lambda job: run(job, request.program(sys.executable, command)), description, keys, subjects=Local
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
