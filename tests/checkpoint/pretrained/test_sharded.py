"""Weights are read into the shards of a mesh, and no host holds more than the part of a device."""

import jax
import numpy as np
import pytest

from mmjax.checkpoint.pretrained import tensor_map
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights
from mmjax.checkpoint.pretrained.safetensors_folder import SafetensorsFolder
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape, choose_rules

from . import models


@pytest.mark.parametrize(
    ("name", "shape"),
    [("clip", MeshShape(fsdp=8)), ("bert", MeshShape(data=2, fsdp=2, tensor=2))],
    ids=["clip", "bert"],
)
def test_every_mesh_reads_the_same(folders, name, shape, monkeypatch):
    folder, largest = folders[name][1], []
    read = SafetensorsFolder.read

    def watched(self, tensor, ranges):
        found = read(self, tensor, ranges)
        largest.append(found.size)
        return found

    configs = [
        Pretrained(path=str(folder), into=f"encoders.{part}")
        for part in (["text", "image"] if name == "clip" else ["text"])
    ]
    alone = models.build(folder)
    for config in configs:
        alone = import_weights(alone, config)
    mesh = shape.build()
    with jax.set_mesh(mesh):
        rules = choose_rules("fsdp_tensor" if shape.tensor > 1 else "fsdp", mesh)
        sharded = models.build(folder, rules=rules)
        monkeypatch.setattr(tensor_map.SafetensorsFolder, "read", watched)
        for config in configs:
            sharded = import_weights(sharded, config)
    parameters = dict(named_leaves(sharded))
    for path, expected in named_leaves(alone):
        if "/encoder/" in path:
            np.testing.assert_array_equal(np.asarray(jax.device_get(parameters[path])), np.asarray(expected))
    shards = [leaf.addressable_shards[0].data.size for path, leaf in parameters.items() if "/encoder/" in path]
    assert max(largest) <= max(shards) < max(leaf.size for leaf in parameters.values())


def test_a_part_of_a_parameter_is_that_part(folders):
    folder = SafetensorsFolder(folders["siglip"][1])
    entry = tensor_map.Entry(
        "vision_model.head.attention.in_proj_weight", "key/kernel", "(s h k) d -> d h k", part=(1, 3)
    )
    whole = entry.read(folder, (24, 4, 6))
    for index in (
        (slice(4, 8), slice(None), slice(None)),
        (slice(None), slice(1, 3), slice(None)),
        (slice(0, 2), slice(1, 2), slice(2, 5)),
    ):
        np.testing.assert_array_equal(entry.read(folder, (24, 4, 6), index), whole[index])
