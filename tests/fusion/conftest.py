"""One device for all fusions."""

import jax
import pytest

from mmjax.sharding.mesh import MeshShape


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh
