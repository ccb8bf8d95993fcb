"""What is rendered for schedulers: parsed, checked against a schema, run for real among stand-ins for their tools."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch.cluster.__main__ import main
from launch.cluster.tpu import slices
from mmjax.errors import UserError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
# Words that fall apart, or are carried out, wherever a quote is missing.
NASTY = "a 'b' \"c\" $HOME `id` $(id) #d: [e] {f}, \\g * !"
GKE = ["gke", "image=registry.example/mmjax:1", "claim=runs"]
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
import jax
from mmjax.sharding import distributed
distributed.initialize(timeout=60)
assert jax.process_count() == 2
print("all:", distributed.gather_lines([f"process {jax.process_index()}"]))
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
    out, error = process.communicate(timeout=90)
    assert process.returncode == 0, error
    assert out.count("all: ['process 0', 'process 1']") == 2


def test_slurm_directives(capsys):
    keys = [
        "nodes=16",
        "accelerator=h100",
        "devices=4",
        "cpus=32",
        "hours=1.5",
        "grace=90",
        "partition=p,q",
        "account=a",
    ]
    script = render(capsys, "slurm", "name=big", *keys, "--", "prepare")
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert set(directives) == {
        *("job-name=big", "nodes=16", "ntasks-per-node=1", "gpus-per-node=h100:4", "cpus-per-task=32", "time=90"),
        *("signal=TERM@90", "requeue", "open-mode=append", "output=%x-%j.log", "partition=p,q", "account=a"),
    }
    # sbatch reads no directive below the first command.
    assert all(line.startswith("#") for line in script.split("\n\n")[0].splitlines())


# Scripts in general


@pytest.mark.parametrize(
    "words",
    [
        ["slurm", "nodes=3"],
        ["slurm", "accelerator=cpu", "cpus=2", "partition=p"],
        [*TPU_VM, "nodes=2"],
        [*TPU_VM, "nodes=32", "topology=8x8", "spot=True", "project=p", f"setup=echo {NASTY}"],
    ],
)
def test_scripts_are_bash(capsys, words):
    script = render(capsys, *words, f"project_dir={NASTY}", "--", "prepare", NASTY)
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


# Google Kubernetes Engine


def manifest(capsys, *words: str) -> dict:
    """The rendered manifest, which fits the schema."""
    rendered = yaml.safe_load(render(capsys, *GKE, *words, "--", "prepare", "x", f"note={NASTY}"))
    jsonschema.validate(rendered, SCHEMA)
    return rendered


@pytest.mark.parametrize(
    ("words", "replicas", "hosts", "selector"),
    [
        (["nodes=16"], 1, 16, ("tpu-v5-lite-podslice", "8x8")),
        (["nodes=16", "topology=4x4"], 4, 4, ("tpu-v5-lite-podslice", "4x4")),
        (["nodes=1", "accelerator=v6e", "devices=8"], 1, 1, ("tpu-v6e-slice", "2x4")),
        (["nodes=16", "accelerator=v4"], 1, 16, ("tpu-v4-podslice", "4x4x4")),
        (["nodes=6", "accelerator=v5p", "topology=2x2x3"], 2, 3, ("tpu-v5p-slice", "2x2x3")),
    ],
)
def test_gke_tpu_slices(capsys, words, replicas, hosts, selector):
    spec = manifest(capsys, *words)["spec"]["replicatedJobs"][0]
    job = spec["template"]["spec"]
    pod = job["template"]["spec"]
    assert (spec["replicas"], job["parallelism"], job["completions"]) == (replicas, hosts, hosts)
    labels = pod["nodeSelector"]
    prefix = "cloud.google.com/gke-tpu-"
    assert (labels[f"{prefix}accelerator"], labels[f"{prefix}topology"]) == selector
    devices = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert devices * hosts == math.prod(map(int, selector[1].split("x")))
    assert {"name": "MMJAX_COORDINATOR", "value": "auto"} in pod["containers"][0]["env"]


def test_gke_gpu_nodes(capsys):
    rendered = manifest(capsys, "name=big-run", "nodes=4", "accelerator=h100", "devices=8", "spot=True", "grace=60")
    spec = rendered["spec"]["replicatedJobs"][0]
    pod = spec["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["terminationGracePeriodSeconds"] == 60
    values = {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}
    # JobSet's headless service has its name, and its pods are SET-JOB-INDEX-INDEX.
    assert values["MMJAX_COORDINATOR"] == f"big-run-{spec['name']}-0-0.big-run:8476"
    assert values["MMJAX_PROCESSES"] == "4"
    assert "job-completion-index" in values["MMJAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    words = ["python", "-m", "launch.prepare", "x", f"note={NASTY}", "run_dir=/mnt/mmjax/big-run"]
    assert container["command"] == words


def test_gke_interruptions_restart_without_end(capsys):
    rendered = manifest(capsys, "restarts=5")
    policy = rendered["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    rule = policy["rules"][0]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = rendered["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    codes = [pod_rule["onExitCodes"] for pod_rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in pod_rule]
    container = job["template"]["spec"]["containers"][0]["name"]
    assert codes == [{"containerName": container, "operator": "In", "values": [75]}]


def test_the_schema_can_refuse(capsys):
    good = manifest(capsys)
    for path, value in [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "replicatedJobs", 0, "template", "spec", "backofLimit"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "OnFailure"),
        (("metadata", "name"), "Upper"),
    ]:
        bad = copy.deepcopy(good)
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, SCHEMA)


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


def test_tpu_vm_slices_and_odd_topologies(capsys):
    script = render(capsys, *TPU_VM, "accelerator=v5p", "nodes=6", "topology=2x2x3", "--", "prepare")
    assert "--type=v5p" in script
    assert "--topology=2x2x3" in script
    assert "--node-count=2" in script
    script = render(capsys, *TPU_VM, "accelerator=v4", "nodes=16", "--", "prepare")
    assert "--accelerator-type=v4-128" in script  # Cloud TPU counts two cores to each chip of v4


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("v5e", 3, 4, None), "12 chips"),
        (("v5e", 4, 4, "2x2x4"), "2 dimensions"),
        (("v4", 3, 4, "2x2x2"), "12 chips, not whole slices"),
        (("v5e", 16, 8, "8x8"), "has 4 chips"),
    ],
)
def test_impossible_slices_are_named(words, part):
    with pytest.raises(UserError, match=part):
        slices(*words)


# The command


def test_out_is_the_result(capsys, tmp_path):
    for words, name in ((["slurm"], "job.sh"), (GKE, "job.yaml")):
        path = tmp_path / name
        assert main([*words, f"out={path}", "--", "prepare"]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        assert os.access(path, os.X_OK) == (name == "job.sh")
        assert path.read_text() == render(capsys, *words, "--", "prepare")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["slrm", "--", "prepare"], "nearest is slurm"),
        (["slurm", "node=3", "--", "prepare"], "nearest is nodes"),
        (["slurm", "nodes=many", "--", "prepare"], "nodes=many"),
        (["slurm", "nodes=0", "--", "prepare"], "nodes=0"),
        (["slurm", "name=A b", "--", "prepare"], "name=A b"),
        (["slurm", "partition=a;b", "--", "prepare"], "partition=a;b"),
        (["slurm", "hours=0.01", "--", "prepare"], "hours=0.01"),
        (["slurm", "project_dir=a\nb", "--", "prepare"], "line breaks"),
        (["slurm", "run_dir=a", "--", "prepare", "run_dir=b"], "say it once"),
        (["slurm", "nodes=2"], "after --"),
        (["slurm", "--", "nothing"], "launch.nothing"),
        (["slurm", "out=/proc/none/job", "--", "prepare"], "out=/proc/none/job"),
        (["gke", "--", "prepare"], "image is not given"),
        ([*GKE, "accelerator=v9", "--", "prepare"], "accelerator=v9"),
        ([*GKE, "run_dir=runs/a", "--", "prepare"], "lost with the pod"),
        (["tpu_vm", "zone=z", "--", "prepare"], "run_dir is not given"),
        (["tpu_vm", "zone=z", "--", "prepare", "run_dir=runs/a"], "absolute"),
    ],
)
def test_wrong_requests_are_one_line(capsys, words, part):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert part in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("scheduler", ["slurm", "gke", "tpu_vm"])
def test_help_lists_every_key(capsys, scheduler):
    assert main([scheduler, "--help"]) == 0
    assert "how many machines" in capsys.readouterr().out
