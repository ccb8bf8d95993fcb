"""A mesh of all devices, and the checkpoints of a run directory on it."""

import jax
import pytest

from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.sharding.mesh import MeshShape


@pytest.fixture(scope="module")
def mesh():
    return MeshShape(data=2, fsdp=2, tensor=2).build()


@pytest.fixture
def run(tmp_path, mesh):
    """Opens the checkpoints of one run directory; what they warn of is in `run.said`."""
    opened, said = [], []

    def open_again(**options):
        for old in opened:
            old.close()
        opened[:] = [Checkpoints(tmp_path, Checkpoint(**options), warn=said.append)]
        return opened[0]

    open_again.said = said
    open_again.folder = tmp_path / "checkpoints"
    with jax.set_mesh(mesh):
        yield open_again
        for old in opened:
            old.close()
