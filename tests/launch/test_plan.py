"""Plans for TPUs that are not here, by the command."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import plan
from mmjax.errors import UserError
from mmjax.hardware.chips import CHIPS
from mmjax.hardware.machine import this_machine
from mmjax.profiling.plan.plan import Network
from mmjax.profiling.plan.roofline import Route
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.topology import parse_topology

SMALL = ("model.dtype=float32", "model.unroll=false", "train.batch_size=64", "optimizer=AdamW")
# Layers that are scanned, not unrolled as one alone would be.
DEEP = ("model.encoders.b.depth=3",)


def planned(folder, *words):
    width = [] if any(word.startswith("model.width") for word in words) else ["model.width=128"]
    assert plan.main(["interactions", *SMALL, *width, *words, f"out={folder}", f"data_dir={folder / 'data'}"]) == 0
    return json.loads((folder / "plan.json").read_text())


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Parameters and batch split over all of eight chips."""
    folder = tmp_path_factory.mktemp("plan")
    return planned(folder, *DEEP, "topology=v5e:2x4", "mesh.data=1", "mesh.fsdp=-1", "price=1.2"), folder


def test_memory_is_by_whose_it_is(flat):
    whole, _ = flat
    held = whole["hbm_bytes"]
    assert whole["fits"]
    assert whole["hbm_limit_bytes"] == 15.75 * 2**30
    # AdamW keeps two numbers a parameter, and nearly all parameters are split in eight.
    assert 4 * whole["parameters"] / 8 <= held["parameters"] < 1.1 * 4 * whole["parameters"] / 8
    assert held["optimizer"] == pytest.approx(2 * held["parameters"], rel=0.01)
    assert held["arguments"] >= held["parameters"] + held["optimizer"] + held["batch"]
    assert held["activations"] > 0
    assert held["peak"] == sum(held[kind] for kind in ("arguments", "outputs", "temporaries", "code"))


def test_flops_are_those_of_the_step(flat):
    """Scanned layers as often as they run; what every device does for itself is little here."""
    whole, _ = flat
    assert whole["hardware_flops"] == pytest.approx(whole["step_flops"], rel=0.02)
    assert whole["model_flops"] == pytest.approx(whole["step_flops"], rel=0.05)


def test_communication_is_over_the_axis_that_splits(flat):
    whole, _ = flat
    kinds = {(each["kind"], each["axis"], each["devices"]) for each in whole["collectives"]}
    assert ("all-gather", "fsdp", 8) in kinds
    assert {axis for _, axis, _ in kinds} == {"fsdp"}
    assert not any(each["crosses_slices"] for each in whole["collectives"])
    gathered = sum(each["bytes"] for each in whole["collectives"] if each["kind"] == "all-gather")
    # Every parameter at least once, as bfloat16 or float32.
    assert gathered > 2 * whole["parameters"] * 7 / 8


def test_time_is_what_it_is_made_of(flat):
    whole, folder = flat
    seconds = whole["predicted_step_seconds"]
    assert sum(whole["roofline_seconds"].values()) == pytest.approx(seconds)
    assert seconds > whole["model_flops"] / 8 / 197e12
    assert whole["predicted_mfu"] == pytest.approx(whole["model_flops"] / seconds / 8 / 197e12)
    assert whole["predicted_examples_per_second"] == pytest.approx(64 / seconds)
    assert whole["predicted_cost_per_1000_steps"] == pytest.approx(1000 * seconds * 8 / 3600 * 1.2)
    page = (folder / "report.html").read_text()
    for title in ("Memory of a device", "A step at best", "Communication", "Where the time goes"):
        assert title in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.slow
def test_slices_talk_over_the_slow_network(tmp_path):
    whole = planned(tmp_path, *DEEP, "topology=v5p:2x2x1", "slices=2", "mesh.replica=2", "mesh.fsdp=4", "mesh.data=1")
    assert (whole["topology"], whole["chips"], whole["devices"]) == ("2 x v5p:2x2x1", 8, 8)
    # The compiler has taken a turn out of the loop, which then has one less.
    assert whole["hardware_flops"] == pytest.approx(whole["step_flops"], rel=0.02)
    between = [each for each in whole["collectives"] if each["crosses_slices"]]
    assert {each["axis"] for each in between} == {"replica"}
    # The gradients once: each device's part of them, of small ones, which the compiler puts together, the whole.
    gradients = 4 * whole["parameters"]
    assert gradients / 4 < sum(each["bytes"] for each in between) < gradients


@pytest.mark.slow
def test_cores_for_communication_are_used(tmp_path):
    whole = planned(tmp_path, *DEEP, "topology=v5p:2x2x4", "mesh.data=2", "mesh.fsdp=8")
    assert (whole["devices"], whole["mesh"]["fsdp"]) == (16, 8)
    summed = [each for each in whole["collectives"] if each["kind"] == "reduce-scatter"]
    assert summed
    assert any(each["overlaps"] for each in summed)
    # Each device keeps what it stores, and only that is added up over the copies.
    copies = sum(
        each["bytes"] for each in whole["collectives"] if each["kind"] == "all-reduce" and each["axis"] == "data"
    )
    assert copies < sum(each["bytes"] for each in summed)


def test_an_axis_may_be_part_of_a_dimension_of_the_torus():
    mesh = MeshShape(data=-1, fsdp=2).build(parse_topology("v5p:4x4x4").devices())
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == (32, 2)
    assert len({device.id for device in mesh.devices.flat}) == 64


@pytest.mark.parametrize(
    ("shape", "slices", "group", "ways", "hops"),
    [
        ("v5p:4x4x4", 1, slice(64), 6, 9),  # both ways round three rings, one after the other
        ("v5p:2x2x4", 1, slice(16), 4, 5),  # both ways round one, one way along two
        ("v5p:4x4x4", 1, slice(2), 1, 1),
        ("v5e:16x16", 1, slice(256), 4, 30),
        ("v5e:4x8", 1, slice(32), 2, 10),
        ("v5e:2x2", 2, slice(0, 8, 4), None, 1),  # the same place of both slices
    ],
)
def test_a_collective_goes_along_one_dimension_of_the_torus_after_the_other(shape, slices, group, ways, hops):
    topology = parse_topology(shape, slices)
    devices = topology.devices()
    chip = CHIPS[topology.generation]
    network = Network(jax.sharding.Mesh(np.array(devices), ("data",)), topology, chip)
    far = Route(chip.dcn, hops, "dcn")
    found = network.route(list(range(len(devices)))[group])
    assert found == (far if ways is None else Route(pytest.approx(ways * chip.ici / chip.links), hops, "ici"))


def test_what_does_not_fit_says_why_and_what_would(tmp_path, capsys):
    """Sixteen billion parameters, or four, on each of the chips."""
    whole = planned(tmp_path, "topology=v5e:2x2", "model.width=16384")
    assert not whole["fits"]
    assert "predicted_step_seconds" not in whole
    assert "the largest part is the " in capsys.readouterr().err
    assert "more chips are" in whole["advice"]
    whole = planned(tmp_path, "topology=v5e:2x4", "model.width=8192")
    assert "mesh.data=1 mesh.fsdp=-1 model.remat=weights would need about" in whole["advice"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["topology=v9:2x2"], r"topology=v9:2x2: there is no v9; there are TPUs \(v4, v5e, .*\), .*GPUs \(a100, .*"),
        (
            ["topology=v5e:8x16"],
            "a batch of 64 cannot be split evenly over 128 parts of the mesh: use a multiple of 128",
        ),
        (["topology=v5e:3x3"], "topology=v5e:3x3: no slice of v5e has that shape; there are 2x2, 2x4, .*"),
        (["topology=v5e"], "topology=v5e: say its chips, as in v5e:2x2; there are 2x2, 2x4, .*"),
        (["topology=v5e:2x2", "mesh.fsdp=8"], ".*needs 8 devices, but there are 4; lower one of the mesh sizes"),
        (
            ["topology=v5e:2x2", "mesh.data=1", "mesh.fsdp=3"],
            "mesh.fsdp=3 uses 3 of the 4 devices of v5e:2x2; choose sizes whose product is that, .*",
        ),
        (
            ["topology=here", "slices=2"],
            "slices=2 needs a TPU topology; topology=here means the devices of this process",
        ),
        (["topology=here", "search=true"], "search=true: must be for a described topology: topology=here plans .*"),
        (["calibration=profiles/a"], "calibration=profiles/a: must be with topology=here, not v5e:16x16"),
        (["slices=0"], "slices=0: must be at least 1"),
        (["toplogy=v5e:2x2"], "unknown key toplogy; the nearest is topology; .*"),
    ],
)
def test_a_wrong_plan_is_one_line(words, line, tmp_path, capsys):
    assert plan.main(["interactions", *SMALL, *words, f"out={tmp_path / 'plan'}"]) == 2
    assert re.fullmatch(f"error: {line}", capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "plan").exists()


def test_gpus_that_are_too_small_say_what_would_do(tmp_path):
    whole = planned(tmp_path, "topology=h100:2", "model.width=8192", "mesh.data=2")
    assert not whole["fits"]
    assert re.fullmatch(
        r"the largest part is the \w+: [\d.]+ GiB; mesh\.data=1 .* GiB, by an estimate", whole["advice"]
    )


def test_without_libtpu(tmp_path, capsys, monkeypatch):
    import importlib.metadata

    from mmjax.sharding import topology

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(topology, "version", missing)
    assert plan.main(["interactions", *SMALL, "topology=v5e:2x2", f"out={tmp_path}"]) == 2
    expected = (
        "error: compiling for v5e:2x2 needs libtpu, and not a TPU: pip install -e '.[plan]', or plan for topology=here"
    )
    assert capsys.readouterr().err.splitlines() == [expected]  # before it is said that compiling takes minutes


@pytest.mark.parametrize(
    ("topology", "dtype", "unroll"),
    [("h100:16", "bfloat16", False), ("v5e:2x2", "bfloat16", False), ("here", this_machine().dtype, True)],
)
def test_what_is_left_to_the_machine_is_that_of_the_topology(tmp_path, monkeypatch, topology, dtype, unroll):
    planned_for = []

    def stop(request, experiment, *_):
        planned_for.append((experiment.model.dtype, experiment.model.unroll))
        raise UserError("this is all the test needs")

    monkeypatch.setattr(plan, "_gpus", stop)
    monkeypatch.setattr(plan, "_compiled", stop)
    assert plan.main(["interactions", f"topology={topology}", f"out={tmp_path / 'plan'}"]) == 2
    assert planned_for == [(dtype, unroll)]


def test_gpus_are_planned_by_the_estimate(tmp_path, capsys):
    whole = planned(tmp_path, "topology=h100:16", "mesh.data=2", "mesh.fsdp=8", "rules=fsdp", "price=2")
    assert whole["analytic"]
    assert (whole["chips"], whole["mesh"]["data"], whole["mesh"]["fsdp"]) == (16, 2, 8)
    assert whole["fits"]
    assert whole["hbm_bytes"]["parameters"] == pytest.approx(4 * whole["parameters"] / 8, rel=0.1)
    # Eight GPUs are joined by NVLink, and sixteen by the network.
    crossing = {each["axis"]: each["crosses_slices"] for each in whole["collectives"]}
    assert crossing == {"fsdp": False, "data": True} | {axis: True for axis in crossing if "+" in axis}
    assert whole["predicted_cost"] > 0
    assert "by the estimate" in capsys.readouterr().err
    assert "Nothing was compiled" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["mesh.tensor=16", "rules=data"],
            "mesh.tensor=16 but rules=data shards nothing over it; choose rules=tensor or",
        ),
        (
            ["mesh.data=16", "train.accumulate=8"],
            "a batch of 8 cannot be split evenly over 16 parts of the mesh: use a multiple of 16",
        ),
        (["mesh.tensor=16", "rules=tensor"], "mesh.tensor=16 does not divide dimension vocab=258"),
    ],
)
def test_a_mesh_that_gpus_cannot_train_on_is_said_in_a_line(tmp_path, capsys, words, said):
    command = ["interactions", *SMALL, "topology=h100:16", f"out={tmp_path}", *words]
    assert plan.main(command) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_search_compiles_the_most_promising(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmjax.profiling.plan.search.REMATS", ("none",))
    simple = ("topology=v5e:2x2", "model.fusion=Concat")
    whole = planned(tmp_path, *simple, "search=true", "compiled=1")
    captured = capsys.readouterr().err
    rows = whole["candidates"]
    assert len(rows) > 3
    compiled = [row for row in rows if "predicted_step_seconds" in row]
    # What was asked for is compiled, too, however little it promises.
    assert len(compiled) == 2
    assert compiled == rows[:2]
    assert any("mesh.data=4" in row["overrides"] for row in compiled)
    seconds = [row["predicted_step_seconds"] for row in compiled]
    assert seconds == sorted(seconds)
    assert whole["predicted_step_seconds"] == compiled[0]["predicted_step_seconds"]
    assert f"the best of the search: {' '.join(compiled[0]['overrides'])}" in captured
    again = planned(tmp_path / "again", *simple, *compiled[0]["overrides"])
    assert again["predicted_step_seconds"] == pytest.approx(whole["predicted_step_seconds"])


@pytest.mark.slow
def test_here_is_planned_by_what_a_profile_reached_and_trained_without_compiling(tmp_path):
    """In processes compiled as users compile."""
    # With something drawn in the step.
    drawn = ("model.width=32", "model.fusion=Concat", "model.modality_dropout=0.1", "train.steps=2")
    small = ("interactions", *SMALL, *drawn, f"data_dir={tmp_path / 'data'}")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def launch(command, *words):
        words = [sys.executable, "-m", f"launch.{command}", *small, *words]
        subprocess.run(words, check=True, capture_output=True, env=environment)

    def kept():
        return {path.name for path in (tmp_path / "data" / "compilations").glob("jit_train_step_of_runs*-cache")}

    launch("profile", "steps=3", f"out={tmp_path / 'profile'}")
    launch("plan", "topology=here", f"calibration={tmp_path / 'profile'}", f"out={tmp_path / 'plan'}")
    measured = json.loads((tmp_path / "profile" / "profile.json").read_text())
    whole = json.loads((tmp_path / "plan" / "plan.json").read_text())
    # What was measured is told again.
    assert whole["predicted_step_seconds"] == pytest.approx(measured["step_seconds"], rel=0.25)
    assert whole["hbm_bytes"]["peak"] == pytest.approx(measured["peak_bytes"], rel=0.1)
    assert whole["fits"]
    planned_step = kept()
    assert len(planned_step) == 1
    launch("train", f"run_dir={tmp_path / 'run'}")
    assert kept() == planned_step
