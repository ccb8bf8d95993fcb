"""Real processes on this machine: what they agree on, what comes out of the launcher, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import Processes, main
from mmjax.errors import UserError
from mmjax.sharding import distributed

ROOT = Path(__file__).parents[2]
RUN = "import sys; from launch.local import Local, run; sys.exit(run(Local({keys}), [sys.executable, *sys.argv[1:]]))"


def launch(tmp_path: Path, script: str, keys: str = "grace=10.0", **options) -> subprocess.Popen:
    """Starts the launcher on a script of ours."""
    file = tmp_path / "script.py"
    file.write_text(script)
    command = [sys.executable, "-c", RUN.format(keys=keys), str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error."""
    out, error = process.communicate(timeout=90)
    return process.returncode, out, error


def wait_for(path: Path, seconds: float = 60) -> None:
    """Returns when the file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from mmjax.sharding import distributed
distributed.initialize(timeout=60)
distributed.initialize()  # a second call changes nothing
index = jax.process_index()
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 2, 4)
with jax.set_mesh(jax.make_mesh((4,), ("data",))):
    rows = np.arange(2.0) + 2 * index + 1
    x = jax.make_array_from_process_local_data(jax.NamedSharding(jax.sharding.get_mesh(), P("data")), rows)
    total = jax.jit(jax.shard_map(lambda part: jax.lax.psum(part.sum(), "data"), in_specs=P("data"), out_specs=P()))(x)
    # The helpers must work inside the mesh of a run, whose axes are explicit.
    lines = distributed.gather_lines([f"{index}:{n} \\N{SNOWMAN}" for n in range(2 - index)])
    flags = [distributed.any_process(index == 1), distributed.any_process(False)]
    distributed.barrier("end")
print(float(total), lines, flags, distributed.is_main_process())
print(f"runs/{index}/summary.json")
distributed.leave(0)
"""


def test_two_processes_make_one_mesh(tmp_path):
    code, out, error = finish(launch(tmp_path, MESH, "processes=2, devices=2"))
    assert code == 0, error
    shared = "10.0 ['0:0 \N{SNOWMAN}', '0:1 \N{SNOWMAN}', '1:0 \N{SNOWMAN}'] [True, False]"
    assert f"[process 0] {shared} True" in out.splitlines()
    assert f"[process 1] {shared} False" in out.splitlines()
    assert out.splitlines()[-1] == "runs/0/summary.json"


FAILS = """
import pathlib, time
from mmjax.sharding import distributed
distributed.initialize(timeout=60)
if not distributed.is_main_process():
    pathlib.Path(__file__).with_name("failed").write_text(str(time.time()))
    raise ArithmeticError("no such luck")
distributed.barrier("never")
"""


def test_a_failing_process_ends_the_run_at_once(tmp_path):
    code, _, error = finish(launch(tmp_path, FAILS, "processes=2, devices=2, grace=5.0"))
    seconds = time.time() - float((tmp_path / "failed").read_text())
    assert code == 1
    assert "[process 1] ArithmeticError: no such luck" in error
    assert error.splitlines()[-1].startswith("launch.local: process 1 failed with exit code 1")
    assert seconds < 15  # left alone, Gloo takes half a minute to notice, and the exit barrier minutes


def test_missing_processes_are_one_clear_error(tmp_path):
    script = "from mmjax.sharding import distributed\ndistributed.initialize(timeout=3)"
    variables = {distributed.COORDINATOR: "127.0.0.1:9", distributed.PROCESSES: "2", distributed.PROCESS_ID: "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | variables, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert "UserError: process 1 of 2 did not reach all other processes at 127.0.0.1:9 within 3 s" in done.stderr
    assert "Check failure" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "meant"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"MMJAX_COORDINATOR": "auto"}, {}),
        (
            {
                "MMJAX_COORDINATOR": "n1:80",
                "MMJAX_PROCESSES": "3",
                "MMJAX_PROCESS_ID": "2",
                "SLURM_STEP_NUM_TASKS": "3",
            },
            {
                "coordinator_address": "n1:80",
                "num_processes": 3,
                "process_id": 2,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_where_the_others_are(variables, meant):
    assert distributed._arguments(variables) == meant


@pytest.mark.parametrize(
    "wrong", [{}, {"MMJAX_PROCESS_ID": "2"}, {"MMJAX_PROCESS_ID": "x"}, {"MMJAX_COORDINATOR": "n1"}]
)
def test_malformed_variables_are_named(wrong):
    good = {"MMJAX_COORDINATOR": "n1:80", "MMJAX_PROCESSES": "2"}
    with pytest.raises(UserError, match="MMJAX_PROCESS_ID="):
        distributed._arguments(good | wrong)


def test_alone_everything_answers_at_once():
    distributed.initialize()
    distributed.barrier("alone")
    assert distributed.is_main_process()
    assert distributed.gather_lines(["a"]) == ["a"]
    assert distributed.any_process(True)
    assert not distributed.any_process(False)


# The scripts below need no JAX: they say who they are, and end as they are told.
STOPS = """
import os, pathlib, signal, sys, time
index = os.environ["MMJAX_PROCESS_ID"]
folder = pathlib.Path(__file__).parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
(folder / f"ready{index}").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(tmp_path, number):
    process = launch(tmp_path, STOPS, "processes=3")
    for index in range(3):
        wait_for(tmp_path / f"ready{index}")
    process.send_signal(number)
    code, _, error = finish(process)
    assert (code, error) == (75, "")


def test_a_killed_launcher_takes_its_processes_along(tmp_path):
    process = launch(tmp_path, STOPS, "processes=2")
    for index in range(2):
        wait_for(tmp_path / f"ready{index}")
    time.sleep(0.1)
    process.kill()
    finish(process)
    for index in range(2):
        pid = int((tmp_path / f"ready{index}").read_text())
        end = time.monotonic() + 10
        while _runs(pid):
            assert time.monotonic() < end, f"process {index} outlived its launcher"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_outstays_its_grace_is_killed(tmp_path):
    script = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["MMJAX_PROCESS_ID"] == "1":
    print("going")
    sys.exit(3)
time.sleep(60)
"""
    start = time.monotonic()
    code, out, error = finish(launch(tmp_path, script, "processes=2, grace=1.0"))
    assert code == 3
    assert out == "[process 1] going\n"
    assert error == "launch.local: process 1 failed with exit code 3, and the others were ended\n"
    assert time.monotonic() - start < 30


def test_processes_are_told_who_they_are_and_what_they_have(tmp_path):
    script = """
import os
names = ("MMJAX_PROCESS_ID", "MMJAX_PROCESSES", "JAX_PLATFORMS", "XLA_FLAGS")
print(*(os.environ[name] for name in names), os.environ["MMJAX_COORDINATOR"].split(":")[0])
"""
    given = "--xla_force_host_platform_device_count=8 --xla_cpu_enable_fast_math=false"
    _, out, _ = finish(launch(tmp_path, script, "processes=2, devices=3", XLA_FLAGS=given))
    flags = "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=3"
    told = [f"[process {index}] {index} 2 cpu {flags} 127.0.0.1" for index in range(2)]
    assert sorted(out.splitlines()[:-1]) == told
    assert f"[process 0] {out.splitlines()[-1]}" == told[0]


def test_a_progress_bar_does_not_break_lines(tmp_path):
    script = """
import os, sys, time
for step in range(3):
    sys.stderr.write(f"\\rstep {step}")
    time.sleep(0.05)
if os.environ["MMJAX_PROCESS_ID"] == "0":
    sys.stderr.write("\\rdone\\n")
print("first\\r\\nnot ended", end="")
"""
    _, out, error = finish(launch(tmp_path, script, "processes=2"))
    assert sorted(error.splitlines()) == ["[process 0] done", "[process 1] step 2"]
    assert [line for line in out.splitlines() if "process 1" in line] == ["[process 1] first", "[process 1] not ended"]
    assert out.splitlines()[-1] == "not ended"


@pytest.mark.parametrize(
    ("ended", "asked", "killed", "code"),
    [
        ({0: 0, 1: 0}, [], set(), 0),
        ({1: 75, 0: 0}, [], set(), 75),
        ({1: 2, 0: -15}, [], set(), 2),
        ({1: -9, 0: 1}, [], set(), 137),
        ({0: 75, 1: -9}, [], {1}, 137),  # nobody asked it to stop, and it never did: a failure
        ({0: 75, 1: -15}, [15], set(), 75),  # asked before it could handle the signal
        ({0: -15, 1: -9}, [15], {1}, 75),
        ({0: 1, 1: 75}, [15], set(), 1),
    ],
)
def test_exit_code(ended, asked, killed, code):
    found, explanation = Processes([], ended, asked, killed).exit_code()
    assert found == code
    assert bool(explanation) == (code not in (0, 75))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["proceses=3", "--", "prepare"], "unknown key proceses; the nearest is processes"),
        (["processes=two", "--", "prepare"], "processes=two"),
        (["devices=0", "--", "prepare"], "devices=0: there must be 1 to 1024"),
        (["processes", "--", "prepare"], "'processes'"),
        (["processes=2"], "after --"),
        (["--", "no_such_command"], "there is no launch.no_such_command"),
    ],
)
def test_wrong_requests_are_one_line(words, part):
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", *words], cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_lists_every_key(capsys):
    assert main(["--help"]) == 0
    assert "how many processes" in capsys.readouterr().out
