"""The scripts for SLURM and TPU VMs, run for real among stand-ins for the schedulers' own programs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster.__main__ import main

ROOT = Path(__file__).parents[2]
# Words that fall apart, or are carried out, wherever a quote is missing.
NASTY = "a 'b' \"c\" $HOME `id` $(id) #d: [e] {f}, \\g * !"
TPU_VM = ["tpu_vm", "zone=europe-west4-b", "run_dir=/mnt/runs/a"]


def render(capsys, *words: str) -> str:
    """What the command prints."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def tool(folder: Path, name: str, script: str) -> None:
    """A stand-in for a scheduler's program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\n{script}")
    (folder / name).chmod(0o755)


# SLURM

SCONTROL = """
import os, pathlib, sys
if sys.argv[1] == "show":
    print("localhost\\nnode2")
else:
    pathlib.Path(os.environ["FOLDER"], "requeued").write_text(" ".join(sys.argv[1:]))
"""
# Runs the task of every node, passes SIGTERM on to all, and exits with the highest code, as srun does.
SRUN = """
import os, pathlib, signal, subprocess, sys
pathlib.Path(os.environ["FOLDER"], "srun.pid").write_text(str(os.getpid()))
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count = int(os.environ["MMJAX_PROCESSES"])
tasks = [subprocess.Popen(words, env=os.environ | {"SLURM_PROCID": str(i)}) for i in range(count)]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
# Stands in for the checkout's launch/prepare.py.
TASK = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
facts = {"words": sys.argv[1:], "coordinator": os.environ["MMJAX_COORDINATOR"], "id": os.environ["MMJAX_PROCESS_ID"]}
(folder / f"task{facts['id']}.json").write_text(json.dumps(facts))
if "wait" in os.environ["HOW"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"ready{facts['id']}").write_text("")
    time.sleep(30)
sys.exit(int(os.environ["HOW"]))
"""
MESH = """
import os, pathlib
import jax
from mmjax.sharding import distributed
distributed.initialize(timeout=60)
assert jax.process_count() == 2
index = jax.process_index()
lines = distributed.gather_lines([f"process {index}"])
pathlib.Path(os.environ["FOLDER"], f"mesh{index}").write_text(" and ".join(lines))
distributed.leave(0)
"""


def start_slurm(tmp_path: Path, script: str, task: str, how: str = "0") -> subprocess.Popen:
    """Starts the batch script as SLURM would, `how` being the exit code of its tasks."""
    tool(tmp_path / "bin", "scontrol", SCONTROL)
    tool(tmp_path / "bin", "srun", SRUN)
    project = tmp_path / "the 'project'"
    (project / "launch").mkdir(parents=True)
    (project / "launch" / "__init__.py").touch()
    (project / "launch" / "prepare.py").write_text(task)
    (tmp_path / "job.sh").write_text(script)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "31234",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "FOLDER": str(tmp_path),
        "HOW": how,
    }
    return subprocess.Popen(
        ["bash", str(tmp_path / "job.sh")], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def slurm(capsys, tmp_path: Path, *words: str) -> str:
    """A batch script for two CPU nodes and the stand-in command."""
    keys = ["slurm", "nodes=2", "accelerator=cpu", f"project_dir={tmp_path}/the 'project'", f"python={sys.executable}"]
    return render(capsys, *keys, "--", "prepare", *words)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_slurm_runs_the_command_everywhere_and_requeues_on_75(capsys, tmp_path, code, requeued):
    script = slurm(capsys, tmp_path, NASTY, "run_dir=/r/it's")
    process = start_slurm(tmp_path, script, TASK, str(code))
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    for index in range(2):
        facts = json.loads((tmp_path / f"task{index}.json").read_text())
        assert facts == {"words": [NASTY, "run_dir=/r/it's"], "coordinator": "localhost:21234", "id": str(index)}
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 31234"


@pytest.mark.parametrize("cancelled", [False, True])
def test_slurm_requeues_at_the_time_limit_but_not_when_cancelled(capsys, tmp_path, cancelled):
    process = start_slurm(tmp_path, slurm(capsys, tmp_path), TASK, "wait")
    end = time.monotonic() + 30
    while not all((tmp_path / f"ready{index}").exists() for index in range(2)):
        assert time.monotonic() < end
        time.sleep(0.05)
    if cancelled:  # scancel signals the batch script as well as the tasks, which the time limit's warning goes to alone
        process.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "requeued").exists() != cancelled


def test_slurm_tasks_make_one_mesh(capsys, tmp_path):
    process = start_slurm(tmp_path, slurm(capsys, tmp_path), MESH)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 0, error
    assert [(tmp_path / f"mesh{index}").read_text() for index in range(2)] == ["process 0 and process 1"] * 2


# TPU VMs

# Keeps the state of the queued resource in a file; each run of the command ends as HOW says in turn.
GCLOUD = """
import json, os, pathlib, subprocess, sys
folder = pathlib.Path(os.environ["FOLDER"])
state, log = folder / "state", folder / "log"
words = sys.argv[3:]
verb = words[1]
with log.open("a") as file:
    file.write(json.dumps(words) + "\\n")
if verb == "list":
    print(state.read_text() if state.exists() else "", end="")
elif verb == "create":
    state.write_text("ACTIVE")
elif verb == "delete":
    state.unlink()
elif verb == "ssh":
    command = words[-1].removeprefix("--command=")
    if "launch.prepare" in command:
        runs = folder / "runs"
        runs.write_text(runs.read_text() + "." if runs.exists() else ".")
        code, after = os.environ["HOW"].split()[len(runs.read_text()) - 1].split("/")
        state.write_text(after)
        os.environ["CODE"] = code
        sys.exit(subprocess.run(["bash", "-c", command], cwd=folder).returncode)
"""
REMOTE = """
import json, os, pathlib, sys
pathlib.Path(os.environ["FOLDER"], "words").write_text(json.dumps([os.environ["MMJAX_COORDINATOR"], *sys.argv[1:]]))
sys.exit(int(os.environ["CODE"]))
"""


def run_tpu_vm(tmp_path: Path, script: str, how: str) -> tuple[int, list[list[str]]]:
    """Exit code of the script, and the words of each gcloud command; `how`: code/state after each run."""
    tool(tmp_path / "bin", "gcloud", GCLOUD)
    (tmp_path / "mmjax" / ".venv").mkdir(parents=True)
    tool(tmp_path / "mmjax" / ".venv" / "bin", "python", REMOTE)
    project = tmp_path / "project"
    project.mkdir()
    (project / "file").write_text("content")
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "FOLDER": str(tmp_path),
        "HOW": how,
        "POLL_SECONDS": "0",
    }
    done = subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True, timeout=60)
    return done.returncode, [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


@pytest.mark.parametrize(
    ("how", "code", "runs", "creations"),
    [
        ("0/ACTIVE", 0, 1, 1),
        ("3/ACTIVE", 3, 1, 1),
        ("75/ACTIVE 75/ACTIVE 0/ACTIVE", 0, 3, 1),
        ("255/SUSPENDED 0/ACTIVE", 0, 2, 2),  # the connection broke because the TPUs were taken away
        ("255/ACTIVE", 255, 1, 1),
    ],
)
def test_tpu_vm_goes_on_after_interruptions(capsys, tmp_path, how, code, runs, creations):
    keys = [*TPU_VM, "nodes=16", "spot=True", f"project_dir={tmp_path}/project"]
    ended, log = run_tpu_vm(tmp_path, render(capsys, *keys, "--", "prepare", NASTY), how)
    assert ended == code
    assert json.loads((tmp_path / "words").read_text()) == [
        *("auto", "-m", "launch.prepare", NASTY, "run_dir=/mnt/runs/a")
    ]
    assert sum("launch.prepare" in words[-1] for words in log) == runs
    made = [words for words in log if words[1] == "create"]
    assert len(made) == creations
    assert {"--accelerator-type=v5litepod-64", "--spot", "--node-id=mmjax", "--zone=europe-west4-b"} <= set(made[0])
    copies = [words for words in log if words[1] == "scp"]
    assert len(copies) == runs
    assert "--worker=all" in copies[0]


def test_tpu_vm_setup_that_fails_ends_the_script(capsys, tmp_path):
    script = render(capsys, *TPU_VM, f"project_dir={tmp_path}/missing", "--", "prepare")
    code, log = run_tpu_vm(tmp_path, script, "0/ACTIVE")
    assert code not in (0, 75)
    assert not any("launch.prepare" in words[-1] for words in log)
