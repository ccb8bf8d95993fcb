"""Training on one device and on meshes of eight: the same losses, and the collectives that the rules ask for."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from launch.command_line import load_experiment, resolve
from mmjax.data.device_batches import rows_of, to_global_arrays
from mmjax.data.loader import Loader
from mmjax.model import build_model
from mmjax.sharding.mesh import choose_rules
from mmjax.training.state import init_state
from mmjax.training.step import train_step
from tests.golden import check_collectives
from tests.slow import slow_but
from tests.system.conftest import TINY

STEPS = 20
ONE = ("mesh.data=1", "rules=data")
MESHES = {
    "data": ("mesh.data=8", "rules=data"),
    "fsdp": ("mesh.fsdp=8", "rules=fsdp"),
    "tensor": ("mesh.data=2", "mesh.tensor=4", "rules=tensor"),
    "fsdp_tensor": ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "rules=fsdp_tensor"),
}


def run(words: tuple[str, ...], data_dir: Path, steps: int) -> tuple[list[float], str]:
    """Losses of the first steps, and the compiled step."""
    tiny = [word for word in TINY if not word.startswith("model.fusion")]
    experiment = resolve(load_experiment("scenes"), [*tiny, *words])
    with jax.set_mesh(experiment.mesh.build()):
        rules = choose_rules(experiment.rules, jax.sharding.get_mesh())
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        data = experiment.data.fit_tokenizers(str(data_dir))
        size = experiment.train.batch_size
        loader = Loader(data, str(data_dir), "train", size, seed=0, rows=rows_of(sharding, size))
        build = functools.partial(build_model, model=experiment.model, features=data.features, rules=rules)
        optimizer = experiment.optimizer.build(steps, jax.eval_shape(build, jax.random.key(0)))
        begin = jax.jit(lambda key: init_state(build(key), optimizer, ema=False))
        state = begin(jax.random.key(0))
        step = jax.jit(functools.partial(train_step, optimizer=optimizer, rules=rules), donate_argnums=0)
        key = jax.random.key(1)
        compiled = step.lower(state, to_global_arrays(loader.batch(0), sharding), key).compile()
        losses = []
        for index in range(steps):
            state, metrics = compiled(state, to_global_arrays(loader.batch(index), sharding), key)
            losses.append(float(metrics["loss"].value()))
        return losses, compiled.as_text()


@pytest.fixture(scope="module")
def one_device(data_dir) -> list[float]:
    return run(ONE, data_dir, STEPS)[0]


@pytest.mark.parametrize("name", slow_but(MESHES, "data", "fsdp_tensor"))
def test_meshes_train_alike(name, data_dir, one_device, request):
    losses, program = run(MESHES[name], data_dir, STEPS)
    np.testing.assert_allclose(losses, one_device, rtol=1e-4)
    assert losses[-1] < losses[0]
    check_collectives(name, program)
