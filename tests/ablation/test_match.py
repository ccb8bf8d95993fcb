"""What a model costs, against real arrays and a mesh of many devices; the width at which it costs what it should."""

import functools

import chz
import jax
import numpy as np
import pytest

from mmjax.ablation import match
from mmjax.ablation.match import match_width, measure
from mmjax.compilation import jit_once
from mmjax.data.device_batches import shapes
from mmjax.encoders import ConvNet, Recurrent, TextTransformer, ViT
from mmjax.errors import UserError
from mmjax.fusion import Bilinear, Bottleneck, Concat, CrossAttention, Gated, LowRankTensor, SingleStream, Sum
from mmjax.hardware.flops import count_flops
from mmjax.heads import Classify
from mmjax.model import Model, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw
from tests.small import FEATURES, SIZE

MODEL = Model(
    width=48,
    dtype="float32",
    encoders={"image": ViT(patch=4, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)},
    fusion=CrossAttention(depth=1, heads=2),
    outputs={"label": Classify(target="label")},
)

# What they are to cost as much by, and the narrowest even width that the model can then have.
FUSIONS = {
    "sum": (Sum(), "parameters", 2),
    "gated": (Gated(), "flops", 2),
    "tensor": (LowRankTensor(), "parameters", 2),
    "bilinear": (Bilinear(size=64), "flops", 2),
    "bottleneck": (Bottleneck(heads=4), "parameters", 4),
    "single stream": (SingleStream(heads=3), "flops", 6),
}


@pytest.fixture(scope="module")
def baseline():
    return measure(MODEL, FEATURES, SIZE)


@pytest.fixture
def measured(monkeypatch):
    """The widths that are measured, one after the other."""
    widths = []

    def count(model, *arguments):
        widths.append(model.width)
        return measure(model, *arguments)

    monkeypatch.setattr(match, "measure", count)
    return widths


def test_the_cost_is_the_same_on_any_mesh(baseline):
    with jax.set_mesh(MeshShape(fsdp=4, tensor=2).build()):
        mesh, rules = jax.sharding.get_mesh(), PRESETS["fsdp_tensor"]
        model = draw(lambda rngs: MODEL.build(FEATURES, rules=rules, rngs=rngs))
        batch = shapes(FEATURES, SIZE, jax.NamedSharding(mesh, rules.spec("batch")))
        assert 3 * count_flops(lambda model, batch: model.loss(batch)[0], model, batch) == baseline.flops
        assert measure(MODEL, FEATURES, SIZE) == baseline
        assert jax.sharding.get_mesh() == mesh


def test_parameters_are_those_of_real_arrays():
    model = chz.replace(MODEL, encoders={"image": ConvNet(stem=4, widths=(6,), depths=(1,))}, fusion=Concat())
    with jax.set_mesh(MeshShape(data=1).build()):
        build = functools.partial(build_model, model=model, features=FEATURES, rules=PRESETS["data"])
        leaves = jax.tree.leaves(jit_once(build)(jax.random.key(0)))
    assert measure(model, FEATURES, SIZE).parameters == sum(len(np.ravel(leaf)) for leaf in leaves)


@pytest.mark.parametrize(("fusion", "by", "step"), FUSIONS.values(), ids=FUSIONS)
def test_no_width_is_nearer_to_the_target(fusion, by, step, baseline, measured):
    target = getattr(baseline, by)
    model = chz.replace(MODEL, fusion=fusion)
    matched = match_width(model, FEATURES, SIZE, by=by, target=target, tolerance=0.15)
    assert matched == chz.replace(model, width=matched.width)
    assert matched.width % step == 0
    assert len(measured) <= 5

    def excess(width):
        cost = getattr(measure(chz.replace(model, width=width), FEATURES, SIZE), by)
        return max(cost / target, target / cost) - 1

    assert excess(matched.width) <= 0.15
    assert excess(matched.width) <= min(excess(matched.width - step), excess(matched.width + step))


def test_a_model_matches_itself(baseline):
    wider = chz.replace(MODEL, width=144)
    assert match_width(wider, FEATURES, SIZE, by="parameters", target=baseline.parameters, tolerance=0.0) == MODEL


def test_a_width_that_two_directions_do_not_divide_is_not_tried(measured):
    encoders = {"image": ViT(patch=4, depth=1, heads=3), "text": Recurrent()}
    model = chz.replace(MODEL, width=12, encoders=encoders, fusion=Concat(hidden=8))
    target = measure(chz.replace(model, width=30), FEATURES, SIZE).parameters
    matched = match_width(model, FEATURES, SIZE, by="parameters", target=1.02 * target)
    assert matched.width == 30
    assert set(measured) == {12, 24, 36, 30}


@pytest.mark.parametrize(
    ("by", "target", "says"),
    [
        ("parameters", 50, "within 10% of 50 parameters: the nearest is model.width=2 with "),
        ("flops", 1e18, "within 10% of 1e+18 FLOPs a step: the nearest is model.width=6553"),
    ],
)
def test_a_target_out_of_reach(by, target, says, measured):
    with pytest.raises(UserError) as error:
        match_width(MODEL, FEATURES, SIZE, by=by, target=target)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(measured) <= 5


def test_a_model_that_cannot_be_built():
    with pytest.raises(UserError, match=r"heads=5 does not divide model.width=48"):
        match_width(chz.replace(MODEL, fusion=CrossAttention(heads=5)), FEATURES, SIZE, by="parameters", target=100_000)
