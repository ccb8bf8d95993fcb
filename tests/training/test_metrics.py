"""metrics.jsonl across kills and resumes, TensorBoard's view of it, the summary, and the digest of parameters."""

import hashlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mmjax.errors import UserError
from mmjax.layers.tree import named_leaves
from mmjax.training.metrics import MetricsLog, parameters_digest, read_history, write_summary
from tests.flags import flags


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_step_seconds_and_metrics_in_order(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(10, {"train/loss": 2.5, "train/accuracy": 0.25})
    log.write(20, {"train/loss": float("nan"), "a": float("inf")})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert list(first) == ["step", "seconds", "train/loss", "train/accuracy"]
    assert first["train/loss"] == 2.5
    assert 0 <= first["seconds"] <= second["seconds"] < 60
    assert second["train/loss"] is None
    assert second["a"] is None
    assert math.isnan(log.history()[1]["train/loss"])
    log.close()


def test_the_same_step_adds_to_its_line_and_an_earlier_one_is_refused(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(5, {"train/loss": 1.0, "train/grad_norm": 123456.789})
    log.write(5, {"validation/loss": 2.0, "train/grad_norm": 1})
    log.write(6, {"train/loss": 0.5})
    log.close()
    history = read_history(tmp_path)
    assert [line["step"] for line in history] == [5, 6]
    assert history[0]["train/loss"] == 1.0
    assert history[0]["validation/loss"] == 2.0
    assert history[0]["train/grad_norm"] == 1
    with pytest.raises(ValueError, match="step 4"):
        MetricsLog(tmp_path, 6).write(4, {})


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"train/loss": step})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(re.sub('"seconds": [0-9]+', '"seconds": 1000', path.read_text()) + '{"step": 40, "sec')
    assert [line["step"] for line in read_history(tmp_path)] == [10, 20, 30]

    resumed = MetricsLog(tmp_path, 20)
    assert steps(tmp_path) == [10, 20]
    assert resumed.seconds >= 1000
    resumed.write(20, {"validation/loss": 7.0})
    resumed.write(30, {"train/loss": 3.0})
    resumed.close()
    history = read_history(tmp_path)
    assert [line["step"] for line in history] == [10, 20, 30]
    assert history[1]["train/loss"] == 20
    assert history[1]["validation/loss"] == 7
    assert history[2]["seconds"] >= 1000


def test_a_killed_process_loses_at_most_its_last_line(tmp_path):
    code = f"""
        import itertools
        from mmjax.training.metrics import MetricsLog
        log = MetricsLog({str(tmp_path)!r})
        for step in itertools.count():
            log.write(step, {{"train/loss": 0.5}})
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    while int(process.stdout.readline()) < 50:
        pass
    process.send_signal(signal.SIGKILL)
    logged = [int(line) for line in process.stdout.read().split()]
    process.wait()
    assert len(read_history(tmp_path)) >= (logged[-1] if logged else 50)


def test_who_is_not_the_lead_touches_nothing(tmp_path):
    log = MetricsLog(tmp_path / "run", lead=False)
    log.write(1, {"train/loss": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()


def test_damage_and_refusals_are_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1}\nnonsense\n{"step": 3, "seconds": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl"):
        MetricsLog(tmp_path, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricsLog(tmp_path / "file" / "run")


def test_summary(tmp_path):
    path = write_summary(
        tmp_path,
        fingerprint="f",
        step=7,
        seconds=1.5,
        metrics={"test/loss": float("nan"), "test/label/accuracy": 0.5},
        parameters_digest="p",
        examples_digest="e",
    )
    summary = json.loads(path.read_text())
    assert list(summary) == ["fingerprint", "step", "seconds", "metrics", "parameters_digest", "examples_digest"]
    assert summary["metrics"] == {"test/loss": None, "test/label/accuracy": 0.5}
    assert os.listdir(tmp_path) == ["summary.json"]


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.arange(64.0).reshape(8, 8))
        self.value = nnx.Param(jnp.ones((), jnp.bfloat16))
        self.parts = nnx.List([nnx.Param(jnp.zeros(2, jnp.int32))])


def test_names_of_leaves():
    tree = {"model": {"b": Layer(nnx.Rngs(0)), "a": jnp.ones(1)}}
    assert [name for name, _ in named_leaves(tree)] == [
        "model/a",
        "model/b/kernel",
        "model/b/parts/0",
        "model/b/value",
    ]
    with pytest.raises(ValueError, match="x/y"):
        named_leaves({"x/y": 1, "x": {"y": 2}})


def test_digest_is_of_names_types_shapes_and_bytes():
    expected = hashlib.sha256()
    for header, array in [
        ("kernel float32 [8, 8]\n", np.arange(64, dtype="<f4").tobytes()),
        ("parts/0 int32 [2]\n", bytes(8)),
        ("value bfloat16 []\n", b"\x80\x3f"),
    ]:
        expected.update(header.encode() + array)
    layer = Layer(nnx.Rngs(0))
    assert parameters_digest(layer) == expected.hexdigest()
    layer.kernel[...] = layer.kernel[...].at[7, 7].set(np.nextafter(np.float32(63), np.float32(64)))
    assert parameters_digest(layer) != expected.hexdigest()


def test_digest_does_not_depend_on_the_sharding():
    kernel = jax.random.normal(jax.random.key(0), (8, 4, 6))
    whole = parameters_digest({"kernel": kernel})
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tensor"))):
        for spec in (PartitionSpec("data", "tensor"), PartitionSpec(None, "data"), PartitionSpec(("data", "tensor"))):
            assert parameters_digest({"kernel": jax.device_put(kernel, spec)}) == whole


def test_digest_is_the_same_on_two_processes(tmp_path):
    code = """
        import sys
        import jax, numpy as np
        from jax.sharding import PartitionSpec
        from mmjax.training.metrics import parameters_digest
        jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
        kernel = np.arange(32, dtype=np.float32).reshape(8, 4)
        mesh = jax.make_mesh((2, 2), ("data", "tensor"))
        make = lambda spec: jax.make_array_from_callback((8, 4), jax.NamedSharding(mesh, spec), kernel.__getitem__)
        with jax.set_mesh(mesh):
            split, replicated = make(PartitionSpec("data", "tensor")), make(PartitionSpec(None, "tensor"))
            assert not split.is_fully_addressable
            print(parameters_digest({"a": split, "b": replicated, "c": np.float32(1)}))
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.getcwd(),
        "XLA_FLAGS": flags(2),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }
    command = [sys.executable, "-c", textwrap.dedent(code), address]
    processes = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True, env=environment) for index in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
    kernel = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert [output.splitlines()[-1] for output in outputs] == [
        parameters_digest({"a": kernel, "b": kernel, "c": np.float32(1)})
    ] * 2
