"""Which mesh axes logical dimensions lie on."""

import pytest
from jax.sharding import PartitionSpec as P

from mmjax.sharding.rules import MESH_AXES, PRESETS, Rules

BATCH = ("replica", "data", "fsdp", "expert")


@pytest.mark.parametrize(
    ("preset", "query", "out", "table"),
    [
        ("data", P(None, None, None), P(None, None, None), P(None, None)),
        ("fsdp", P("fsdp", None, None), P(None, None, "fsdp"), P(None, "fsdp")),
        ("tensor", P(None, "tensor", None), P("tensor", None, None), P("tensor", None)),
        ("fsdp_tensor", P("fsdp", "tensor", None), P("tensor", None, "fsdp"), P("tensor", "fsdp")),
    ],
)
def test_presets(preset, query, out, table):
    rules = PRESETS[preset]
    assert rules.spec("embed", "heads", None) == query
    assert rules.spec("heads", None, "embed") == out
    assert rules.spec("vocab", "embed") == table
    assert rules.spec("batch", None) == P(BATCH, None)
    assert rules.spec("group", "expert") == P(("replica", "data", "fsdp"), "expert")


def test_parameters_are_gathered_over_their_storage_axis_only():
    assert PRESETS["fsdp_tensor"].gathered_spec("embed", "heads", None) == P(None, "tensor", None)
    assert PRESETS["fsdp"].gathered_spec("embed", "mlp") == P(None, None)


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        (PRESETS["fsdp"], ("batch", "embed")),
        (PRESETS["tensor"], ("heads", "mlp")),
        (PRESETS["fsdp"], ("embed", "embed")),
        (Rules(heads=("tensor", "fsdp"), embed=("fsdp",)), ("embed", "heads")),
    ],
)
def test_one_mesh_axis_twice_is_an_error(rules, names):
    with pytest.raises(ValueError, match="mesh axis twice"):
        rules.spec(*names)


def test_several_axes_split_one_dimension():
    assert Rules(mlp=("expert", "tensor")).spec("mlp", None) == P(("expert", "tensor"), None)


def test_axes_are_those_that_split_something():
    assert PRESETS["data"].axes() == set(BATCH)
    assert PRESETS["fsdp_tensor"].axes() == {*BATCH, "tensor"}
    assert all(rules.axes() <= set(MESH_AXES) for rules in PRESETS.values())
