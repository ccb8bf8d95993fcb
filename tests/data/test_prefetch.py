"""Batches that are read ahead, by threads and by processes: the same ones, and what ends them."""

import multiprocessing
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest

from mmjax.data import prefetch
from mmjax.data.inputs import VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.errors import Preempted, UserError
from tests.data.examples import COUNT, DAMAGE, SIZE, InMemory, Memory, assert_same, loader

# Worker processes cannot import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2, "prefetch": 3}, {"workers": 2, "threads": 1}])
def test_prefetching_changes_nothing(options):
    source = loader(broken=DAMAGE, **options)
    found = list(source.iterate(3, 9))
    assert [host.step for host in found] == list(range(3, 9))
    for host in found:
        assert_same(host, loader(broken=DAMAGE).batch(host.step))
    assert list(source.iterate(4, 4)) == []


def test_leaving_early_ends_the_threads():
    import threading

    before = set(threading.enumerate())
    batches = loader(threads=2).iterate(0, 10**6, lambda host: host.step)
    assert [next(batches), next(batches)] == [0, 1]
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


READ = """
import multiprocessing
from tests.data.examples import loader

batches = loader(workers=2, threads=1).iterate(0, 10**6)
next(batches)
print(len(multiprocessing.active_children()), flush=True)
while True:
    next(batches)
"""


def test_workers_end_with_a_process_that_is_killed():
    reading = subprocess.Popen([sys.executable, "-c", READ], stdout=subprocess.PIPE, text=True)
    assert reading.stdout.readline() == "2\n"
    reading.kill()
    # The workers have the pipe too: it ends when the last of them does.
    assert reading.communicate(timeout=30)[0] == ""


class Large(Memory):
    """Examples whose batches do not fit into a pipe at once: a worker is killed while it writes one."""

    def __getitem__(self, index):
        return {"place": np.zeros((50_000, 2))}


@pytest.mark.parametrize("kind", [Memory, Large])
def test_a_worker_that_is_killed_interrupts_the_run(kind, monkeypatch):
    monkeypatch.setattr(InMemory, "open", lambda self, data_dir, split: kind(split, self.count, self.broken))
    whole = Data(source=InMemory(), inputs={"place": VectorInput(size=2, slots=50_000)}, workers=1, prefetch=1)
    batches = Loader(whole, "", "train", SIZE, seed=7).iterate(0, 10**6, lambda host: host)
    next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.5)  # it goes on until nothing more fits
    worker.kill()
    with pytest.raises(Preempted, match=r"a process of the data loader was killed.*the same command resumes"):
        list(batches)
    monkeypatch.setattr(prefetch, "GRACE", 0.1)
    batches.close()


def test_a_long_wait_is_told(monkeypatch, capsys):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.2)
    monkeypatch.setattr(prefetch, "LOOK", 0.02)
    batches = loader().iterate(0, 3, lambda host: time.sleep(1.0 if host.step == 1 else 0.0))
    next(batches)
    capsys.readouterr()
    list(batches)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4  # after 0.2, 0.4 and 0.8 s
    assert all(line.startswith("no batch for ") for line in lines)


def test_an_error_of_the_user_stays_one():
    class Gone(Memory):
        def __getitem__(self, index):
            raise UserError("the file is gone")

    source = loader(threads=2)
    source.records = Gone("train", COUNT, {})
    with pytest.raises(UserError, match="the file is gone"):
        list(source.iterate(0, 2, lambda host: host))
