"""What is rendered for schedulers: parsed, and checked against a schema of Kubernetes and JobSet."""

import copy
import json
import math
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch.cluster.__main__ import main
from launch.cluster.tpu import slices
from mmjax.errors import UserError

SCHEMA = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
# Words that fall apart, or are carried out, wherever a quote is missing.
NASTY = "a 'b' \"c\" $HOME `id` $(id) #d: [e] {f}, \\g * !"
GKE = ["gke", "image=registry.example/mmjax:1", "claim=runs"]
TPU_VM = ["tpu_vm", "zone=europe-west4-b", "run_dir=/mnt/runs/a"]


def render(capsys, *words: str) -> str:
    """What the command prints."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


# Scripts


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


# Slices


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


def test_out_is_a_file_and_nothing_else_changes_its_mode(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = (tmp_path / "pipe").stat().st_mode
    assert main(["slurm", f"out={tmp_path / 'pipe'}", "--", "prepare"]) == 2
    assert "is not a regular file" in capsys.readouterr().err
    assert (tmp_path / "pipe").stat().st_mode == before


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
        (["slurm", "hours=1e308", "--", "prepare"], "hours=1e+308"),
        (["slurm", "hours=9000", "--", "prepare"], "hours=9000: must lie between 0 and 8784, a year"),
        (["slurm", "out=~nobody-of-this-name/job", "--", "prepare"], "no such user's home directory"),
        (["slurm", "project_dir=a\nb", "--", "prepare"], "line breaks"),
        (["slurm", "run_dir=a", "--", "prepare", "run_dir=b"], "say it once"),
        (["slurm", "nodes=2"], "after --"),
        (["slurm", "--", "nothing"], "launch.nothing"),
        (["slurm", "out=/proc/none/job", "--", "prepare"], "cannot write /proc/none/job"),
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
