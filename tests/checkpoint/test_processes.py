"""Checkpoints of whole processes: killed while they save, refused by the kernel, two that save together."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp

from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from tests.flags import flags

ROOT = Path(__file__).resolve().parents[2]

PREAMBLE = """
import os, sys
import jax, jax.numpy as jnp
from mmjax.errors import UserError
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
run_dir = sys.argv[1]
"""


def start(script, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(2)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


LIMITED = """
import resource
checkpoints = Checkpoints(run_dir, Checkpoint(keep=1))
checkpoints.save(1, {"x": jnp.ones(1000)}, {}, {}); checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"x": jnp.ones(1_000_000)}, {}, {})
    print("returned")
    checkpoints.wait()
except UserError as error:
    print(error)
checkpoints.close()
restored = Checkpoints(run_dir, Checkpoint()).restore({"x": jnp.ones(1000)})
print(sorted(os.listdir(run_dir + "/checkpoints")), restored.step)
"""


def test_a_disk_that_refuses_in_the_background(tmp_path):
    """A real refusal of the kernel's, met by the threads of TensorStore: one line, and what was there stays."""
    out, err = finish(start(LIMITED, tmp_path))
    assert out.splitlines() == [
        "returned",
        f"checkpoint 2 could not be written in {tmp_path}/checkpoints: a file would be larger than allowed there; "
        "raise the limit",
        "['1'] 1",
    ]
    assert "Traceback" not in err


SAVE_FOR_EVER = """
checkpoints = Checkpoints(run_dir, Checkpoint(keep=2))
state = {str(i): jnp.zeros((500, 1000), jnp.int32) for i in range(10)}
restored = checkpoints.restore(state)
step = restored.step if restored else 0
assert restored is None or all((leaf == step).all() for leaf in restored.state.values()), "mixed"
print("at", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, {name: jnp.full_like(leaf, step) for name, leaf in state.items()}, {}, {})
"""


def test_killed_while_saving(tmp_path):
    """SIGKILL at random moments: every start finds a whole checkpoint, newer than the last, and cleans up."""
    random.seed(0)
    at = -1
    for _ in range(4):
        process = start(SAVE_FOR_EVER, tmp_path)
        line = process.stdout.readline()
        assert line.startswith("at "), process.stderr.read()
        assert int(line.split()[1]) > at
        at = int(line.split()[1])
        while not any(int(path.name) > at for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    said = []
    checkpoints = Checkpoints(tmp_path, Checkpoint(keep=2), warn=said.append)
    state = {str(i): jnp.zeros((500, 1000), jnp.int32) for i in range(10)}
    restored = checkpoints.restore(state)
    assert restored.step > at
    assert all((leaf == restored.step).all() for leaf in restored.state.values())
    checkpoints.save(restored.step + 1, restored.state, {}, {})
    checkpoints.close()
    assert said == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdigit()) == []


TWO = """
from jax.sharding import PartitionSpec as P
from mmjax.sharding import distributed
distributed.initialize()
assert jax.process_count() == 2
with jax.set_mesh(jax.make_mesh((4,), ("d",))):
    make = lambda step: {
        "x": jax.lax.broadcast(step, (8, 100), out_sharding=P("d")) + jnp.arange(100), "y": step * jnp.arange(5)}
    make = jax.jit(make)
    checkpoints = Checkpoints(run_dir, Checkpoint(keep=2, best_metric="m"))
    for step in (1, 2, 3):
        checkpoints.save(step, make(step), {"at": step}, {"m": -step})
    checkpoints.wait()
    if jax.process_index() == 0:
        largest = max((p for p in checkpoints._folder.glob("3/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes()); data[len(data) // 2] ^= 1; largest.write_bytes(data)
    distributed.barrier("damaged by hand")
    said = []
    checkpoints.close()
    checkpoints = Checkpoints(run_dir, Checkpoint(keep=2, best_metric="m"), warn=said.append)
    restored = checkpoints.restore(jax.eval_shape(make, 0))
    assert restored.step == 2 and restored.extra == {"at": 2}, restored
    assert len(said) == 1 and "moved to damaged-3" in said[0], said
    want = make(2)
    for name in want:
        assert restored.state[name].sharding == want[name].sharding
        assert jax.jit(lambda a, b: (a == b).all())(restored.state[name], want[name])
    checkpoints.save(3, make(3), {}, {"m": -3}); checkpoints.close()
    print(checkpoints.steps(), flush=True)
"""


def test_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    members = [
        start(TWO, tmp_path, MMJAX_COORDINATOR=f"127.0.0.1:{port}", MMJAX_PROCESSES="2", MMJAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    try:
        assert [finish(process)[0].splitlines()[-1] for process in members] == ["[1, 2, 3]"] * 2
    finally:
        for process in members:
            process.kill()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "3", "damaged-3"]
    assert json.loads((tmp_path / "checkpoints/1/extra/extra.json").read_text())["extra"] == {"at": 1}
