"""Plans by estimate: communication from types, memory, and the search for a mesh."""

import collections

import pytest

from launch.command_line import load_experiment
from mmjax.config.overrides import resolve
from mmjax.hardware.chips import CHIPS
from mmjax.profiling.plan.cost_model import ArrayLayout, Collective, cost_model, estimate
from mmjax.profiling.plan.search import REMATS, meshes, search
from mmjax.sharding.rules import MESH_AXES

SMALL = ["model.dtype=float32", "model.unroll=false", "train.batch_size=64", "optimizer=AdamW", "model.width=128"]
OPTIMIZERS = {"adamw": SMALL, "muon": [*SMALL[:3], "optimizer=Muon", "model.width=128"]}
BATCH = ("replica", "data", "fsdp", "expert")


def mesh(**sizes):
    return dict.fromkeys(MESH_AXES, 1) | sizes


@pytest.fixture(scope="module")
def drawn():
    return cost_model(resolve(load_experiment("interactions"), SMALL))


def sent_bytes(drawn, sizes):
    totals = collections.Counter()
    for talk in drawn.collectives:
        totals[talk.kind, tuple(axis for axis in talk.axes if sizes[axis] > 1)] += talk.sent_bytes(sizes)
    return totals


def test_a_talk_sends_what_a_ring_sends():
    value = ArrayLayout(800, (10, 20), (("tensor",), ()))
    sizes = mesh(fsdp=4, tensor=2)
    assert Collective("all-gather", ("fsdp",), value, 3).sent_bytes(sizes) == 3 * 400 * 3 / 4
    assert Collective("all-reduce", ("fsdp",), value, 1).sent_bytes(sizes) == 2 * 400 * 3 / 4
    assert Collective("all-reduce", ("data",), value, 1).sent_bytes(sizes) == 0
    assert value.is_divisible(sizes)
    assert not value.is_divisible(mesh(tensor=3))


def test_gradients_go_where_their_parameters_are(drawn):
    """Split eight ways: each device sends 7/8 of all gradients once; copied eight times: all of them twice 7/8."""
    size = 4 * drawn.parameters
    split = sent_bytes(drawn, mesh(fsdp=8))
    assert split["reduce-scatter", ("fsdp",)] == pytest.approx(size * 7 / 8, rel=0.1)
    assert split["all-gather", ("fsdp",)] > 2 * drawn.parameters * 7 / 8
    copied = sent_bytes(drawn, mesh(data=8))
    assert copied["all-reduce", ("data",)] == pytest.approx(2 * size * 7 / 8, rel=0.1)
    assert not copied["all-gather", ("data",)] > 1e5


def test_memory_is_shared_by_those_it_is_split_over(drawn):
    one, eight, copied = (drawn.memory(sizes) for sizes in (mesh(), mesh(fsdp=8), mesh(data=8)))
    assert one["parameters"] == copied["parameters"] == pytest.approx(4 * drawn.parameters)
    assert eight["parameters"] == pytest.approx(one["parameters"] / 8, rel=0.05)
    # What is kept are a device's own examples' activations, and the weights as they were gathered.
    assert one["activations"] / 8 < eight["activations"] < one["activations"] / 8 + 4 * drawn.parameters
    assert one["gradients"] == one["parameters"]
    assert one["optimizer"] == pytest.approx(2 * one["parameters"], rel=0.01)
    for memory in (one, eight, copied):
        assert memory["peak"] == pytest.approx(sum(memory.values()) - memory["peak"], abs=8)


def test_more_chips_take_less_time_and_never_more_than_their_peak(drawn):
    chip = CHIPS["v5e"]
    few, many = (estimate(drawn, mesh(data=size), chip, 64) for size in (1, 16))
    assert many.compute == pytest.approx(few.compute / 16)
    assert many.hbm < few.hbm
    assert 0 < many.mfu < few.mfu < 0.7
    # Between slices the way is longer.
    assert estimate(drawn, mesh(data=16), chip, 8).seconds > many.seconds


def test_work_that_an_axis_does_not_divide_is_done_by_all_its_devices():
    """Newton-Schulz of Muon is on the parameters, of which each device along data has a copy."""
    found = {name: cost_model(resolve(load_experiment("interactions"), words)) for name, words in OPTIMIZERS.items()}
    more = found["muon"].step_flops - found["adamw"].step_flops
    assert more > 0
    for size in (1, 8):
        flops = {name: drawn.device_flops(mesh(data=size)) for name, drawn in found.items()}
        assert flops["muon"] - flops["adamw"] == pytest.approx(more, rel=1e-6)
    split = {name: drawn.device_flops(mesh(fsdp=8)) for name, drawn in found.items()}
    assert split["muon"] - split["adamw"] < 0.3 * more


def test_what_is_calculated_again_costs_bandwidth():
    plain, again = (
        cost_model(resolve(load_experiment("interactions"), [*SMALL, f"model.remat={remat}"]))
        for remat in ("none", "full")
    )
    assert plain.activations(mesh())[1] == 0
    assert again.activations(mesh())[1] == pytest.approx(plain.activations(mesh())[0] - again.activations(mesh())[0])
    assert again.memory(mesh())["peak"] < plain.memory(mesh())["peak"]
    assert estimate(again, mesh(), CHIPS["v5e"], 1).hbm > estimate(plain, mesh(), CHIPS["v5e"], 1).hbm


def test_no_device_gets_the_activations_of_all():
    """What a device is sent by those with other examples does not grow with the batch."""
    drawn = cost_model(load_experiment("pretrain_300m"))
    gathers = [talk for talk in drawn.collectives if talk.kind == "all-gather" and "data" in talk.axes]
    assert sum(talk.sent_bytes(mesh(data=16)) for talk in gathers) < 1e5
    assert drawn.is_divisible(mesh(data=16), BATCH)
    assert drawn.is_divisible(mesh(fsdp=16), BATCH)
    assert not drawn.is_divisible(mesh(fsdp=256), BATCH)


def test_meshes_use_all_devices_once():
    found = [tuple(each.values()) for each in meshes(32, 2)]
    assert len(found) == len(set(found)) > 8
    for each in meshes(32, 2):
        assert each["replica"] * each["data"] * each["fsdp"] * each["tensor"] == 32
        assert each["replica"] == 2
        assert each["tensor"] <= 8


def test_a_search_ranks_what_fits_first(monkeypatch):
    said = []
    monkeypatch.setattr("mmjax.profiling.plan.search.REMATS", REMATS[::3])
    experiment = resolve(load_experiment("interactions"), SMALL)
    roomy = search(experiment, CHIPS["v5e"], 8, 1, 1e9, said.append)
    assert said == [f"estimating with model.remat={remat} train.accumulate=1" for remat in ("none", "full")]
    assert all(candidate.fits for candidate in roomy)
    assert [each.estimate.seconds for each in roomy] == sorted(each.estimate.seconds for each in roomy)
    # The words make the experiment that was estimated.
    for candidate in roomy[:3]:
        assert resolve(experiment, list(candidate.words)) == candidate.experiment
    # With little memory those that copy everything are last, and a batch is worked through in parts where none fits.
    least = min(candidate.estimate.memory["peak"] for candidate in roomy)
    tight = search(experiment, CHIPS["v5e"], 8, 1, 1.2 * least, lambda _: None)
    assert tight[0].fits
    assert not tight[-1].fits
    monkeypatch.setattr("mmjax.profiling.plan.search.REMATS", ("full",))
    large = resolve(experiment, ["train.batch_size=4096"])
    least = min(each.estimate.memory["peak"] for each in search(large, CHIPS["v5e"], 8, 1, 1e12, said.append))
    parts = search(large, CHIPS["v5e"], 8, 1, 0.8 * least, said.append)
    assert said[-1] == "estimating with model.remat=full train.accumulate=2"
    assert parts[0].experiment.train.accumulate == 2
