"""Data, data_dir and run_dir in buckets: a run that is killed goes on exactly, and is used from there."""

import json
import signal
import time

import fsspec
import numpy as np
import pytest

import mmjax as mm
from mmjax.buckets import find_files
from mmjax.files import to_path, write_atomic
from mmjax.growing_file import read_growing
from tests.data.formats import examples as written
from tests.servers import gcs_server, s3_server
from tests.system.conftest import finish, start

SMALL = ("model.width=32", "model.dtype=float32", "model.unroll=false", "data.workers=0", "train.batch_size=8")
OFTEN = ("train.steps=12", "train.log_every=1", "checkpoint.every=4")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """gs:// and s3:// on loopback, each with a bucket; data_dirs there have their mirrors apart."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with gcs_server("bucket") as gcs, s3_server("bucket") as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in {**gcs, **s3, "XDG_CACHE_HOME": cache}.items():
            patch.setenv(name, value)
        for scheme in ("gs", "s3"):
            fsspec.filesystem(scheme).clear_instance_cache()
        yield
        for scheme in ("gs", "s3"):
            fsspec.filesystem(scheme).clear_instance_cache()


@pytest.fixture(scope="module")
def files(tmp_path_factory, shared_data):
    folder = tmp_path_factory.mktemp("files")
    written.write_json_lines(folder, written.real_examples(shared_data, 40))
    return folder


def put(folder, url):
    for file in folder.iterdir():
        write_atomic(to_path(url) / file.name, file.read_bytes())


def summary(url):
    return json.loads((to_path(url) / "summary.json").read_bytes())


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_exactly_after_sigkill(servers, files, tmp_path):
    put(files, "gs://bucket/data")
    experiment = tmp_path / "own.py"
    finish("new", "gs://bucket/data", f"out={experiment}", "task=retrieve", "data_dir=gs://bucket/cache")
    # Compiled programs are shared on the disk: the server here answers one request at a time.
    words = (experiment, *SMALL, *OFTEN, f"data_dir={tmp_path}")
    finish("train", *words, "run_dir=gs://bucket/runs/whole")
    whole = summary("gs://bucket/runs/whole")

    killed = "gs://bucket/runs/killed"
    process = start("train", *words, f"run_dir={killed}")
    while process.poll() is None and not (to_path(killed) / "checkpoints/4/commit_success.txt").exists():
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (to_path(killed) / ".lock").exists()  # of a process that is gone
    output = finish("train", *words, f"run_dir={killed}")
    assert "resuming gs://bucket/runs/killed at step" in output
    resumed = summary(killed)
    assert resumed["parameters_digest"] == whole["parameters_digest"]
    assert resumed["examples_digest"] == whole["examples_digest"]
    assert resumed["metrics"] == whole["metrics"]
    histories = [
        [json.loads(line) for line in read_growing(to_path(run) / "metrics.jsonl").splitlines()]
        for run in ("gs://bucket/runs/whole", killed)
    ]
    assert [line["step"] for line in histories[1]] == [*range(1, 13)]
    assert [line["train/loss"] for line in histories[0]] == [line["train/loss"] for line in histories[1]]
    assert not (to_path(killed) / ".lock").exists()
    assert not any(".parts/" in name for name in find_files(to_path(killed)))
    assert any(name.startswith("tensorboard/") for name in find_files(to_path(killed)))

    # The same from files on this machine's disk.
    local = tmp_path / "local.py"
    finish("new", files, f"out={local}", "task=retrieve", f"data_dir={tmp_path}")
    finish("train", local, *SMALL, *OFTEN, f"data_dir={tmp_path}", f"run_dir={tmp_path / 'run'}")
    disk = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert disk["parameters_digest"] == whole["parameters_digest"]
    assert disk["examples_digest"] == whole["examples_digest"]

    # It is evaluated, used in Python, and begun again.
    finish("evaluate", killed)
    assert "evaluations/12.json" in find_files(to_path(killed))
    embedded = mm.load(killed).embed(text=["grinning face"])["encoders/text"]
    assert np.asarray(embedded).shape[0] == 1
    again = (experiment, *SMALL, "train.steps=3", f"data_dir={tmp_path}", f"run_dir={killed}", "fresh=true")
    output = finish("train", *again)
    assert f"moved {killed} to {killed}.1" in output
    assert summary(f"{killed}.1") == resumed
    assert summary(killed)["step"] == 3


@pytest.mark.slow
def test_training_reads_s3_as_it_reads_the_disk(servers, files, tmp_path):
    put(files, "s3://bucket/data")
    digests = set()
    for name, path in (("disk", files), ("bucket", "s3://bucket/data")):
        experiment = tmp_path / f"{name}.py"
        finish("new", path, f"out={experiment}", "task=retrieve", f"data_dir={tmp_path}")
        run_dir = tmp_path / name
        finish("train", experiment, *SMALL, "train.steps=3", f"data_dir={tmp_path}", f"run_dir={run_dir}")
        digests.add(json.loads((run_dir / "summary.json").read_text())["parameters_digest"])
        # Neither the keys nor where they came from are kept.
        assert not any(b"s3cr3t" in file.read_bytes() for file in run_dir.rglob("*") if file.is_file())
    assert len(digests) == 1


def test_what_cannot_be_is_told_in_a_line(servers, tmp_path):
    words = ("interactions", "model.width=32", "data.source.train=64", "train.steps=2", f"data_dir={tmp_path}")
    output = finish("train", *words, "run_dir=s3://bucket/run", code=2)
    assert output.strip() == (
        "error: run_dir=s3://bucket/run: checkpoints are written to local folders and gs:// only; set another run_dir"
    )
    output = finish("train", *words, "run_dir=gs://elsewhere/run", code=1)
    assert output.count("error:") == 1
    assert "Traceback" not in output


def test_one_process_trains_in_a_run_dir(servers, tmp_path):
    words = ("interactions", "model.width=32", "data.source.train=64", "data.workers=0", f"data_dir={tmp_path}")
    words = (*words, "run_dir=gs://bucket/runs/held", "train.steps=2000", "train.log_every=1")
    first = start("train", *words)
    try:
        lock = to_path("gs://bucket/runs/held/.lock")
        for line in first.stdout:
            if "step 1/" in line:
                break
        assert lock.exists()
        output = finish("train", *words, code=2)
        assert "another process is training in gs://bucket/runs/held" in output
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=120)
    assert not lock.exists()
