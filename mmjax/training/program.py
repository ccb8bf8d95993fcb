"""What a training computes: its model, its step and its evaluation, as functions to be compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from mmjax.checkpoint.initialize import initialize
from mmjax.compilation import jit_once, usable_cores
from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import shapes
from mmjax.data.loader import Data
from mmjax.evaluation.evaluator import Evaluator
from mmjax.hardware.chips import step_options
from mmjax.hardware.flops import step_flops
from mmjax.model import build_critics, build_model
from mmjax.sharding.mesh import count_slices, current_mesh, shard_bytes
from mmjax.sharding.rules import Rules
from mmjax.training.run import RunDir
from mmjax.training.state import TrainState, init_state
from mmjax.training.step import train_step
from mmjax.types import Batch, Metrics
from mmjax.vmap_runs import stack, vmap_runs


class Program:
    """What experiments that differ in seed and run directory have in common: the model, its step, its evaluation.

    Everything is of the current mesh, whose devices may be descriptions of some that are not here: then nothing can be
    drawn or evaluated, and the step can still be compiled. Where only the mesh's sizes are known, it can be traced.
    """

    def __init__(self, experiment: Experiment, data: Data, rules: Rules):
        """Raises UserError where the model does not fit the mesh."""
        self.experiment, self.data, self.rules = experiment, data, rules
        self.sharding = NamedSharding(current_mesh(), rules.spec("batch"))
        train, model = experiment.train, experiment.model
        self.build = functools.partial(build_model, model=model, features=self.data.features, rules=rules)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        abstract_model = jax.eval_shape(self.build, self.key)
        self.optimizer = self.experiment.optimizer.build(train.steps, abstract_model)
        self.build_critics = functools.partial(build_critics, model=model, features=self.data.features, rules=rules)
        abstract_critics = jax.eval_shape(self.build_critics, self.key)
        contested = abstract_critics is not None
        self.critic_optimizer = (
            self.experiment.critic_optimizer.build(train.steps, abstract_critics) if contested else None
        )
        self.start = functools.partial(
            init_state, optimizer=self.optimizer, ema=train.ema is not None, critic_optimizer=self.critic_optimizer
        )
        self.abstract = jax.eval_shape(self.start, abstract_model, critics=abstract_critics)

    @functools.cached_property
    def draw(self) -> Callable[[jax.Array], TrainState]:
        """Draws a state before the first step by a key."""
        return jit_once(lambda key: self.start(self.build(key), critics=self.build_critics(key)))

    def begin(self, run: RunDir) -> TrainState:
        """The state before the first step."""
        origin = self.experiment.train.initialize
        if origin is None:
            return self.draw(run.draw_key)
        model = initialize(jit_once(self.build)(run.draw_key), origin, say=run.say)
        return jit_once(lambda model, key: self.start(model, critics=self.build_critics(key)))(model, run.draw_key)

    def batch(self, size: int | None = None) -> Batch:
        """The shapes of a batch; of `size` examples, if that is given."""
        return shapes(self.data.features, size or self.experiment.train.batch_size, self.sharding)

    @functools.cached_property
    def argument_bytes(self) -> dict[str, int]:
        """The bytes that a device holds of a step's arguments, by kind."""
        state = self.abstract
        kinds = {
            "parameters": state.model,
            "optimizer": state.opt_state,
            "average": state.ema,
            "critics": (state.critics, state.critic_opt_state),
            "batch": self.batch(),
        }
        return {name: shard_bytes(tree) for name, tree in kinds.items()}

    @functools.cached_property
    def model_flops(self) -> int:
        """The FLOPs of the model and its critics in a step of one run."""
        return step_flops(self.abstract.model, self.batch(), self.abstract.critics)

    def step(self, count: int = 1) -> Any:
        """The jitted training step of `count` runs: (state, a batch of each, their keys); the state is given away."""
        train = self.experiment.train
        step = functools.partial(
            train_step,
            optimizer=self.optimizer,
            critic_optimizer=self.critic_optimizer,
            rules=self.rules,
            accumulate=train.accumulate,
            ema=train.ema,
        )

        def step_together(state: TrainState, batches: list[Batch], keys: jax.Array) -> tuple[TrainState, Metrics]:
            return vmap_runs(step, count)(state, stack(batches), keys)

        mesh = current_mesh()
        options = None
        if isinstance(mesh, Mesh):
            cores = usable_cores() // jax.local_device_count()
            devices = list(mesh.devices.flat)
            options = step_options(devices[0].device_kind, cores, count_slices(devices))
        return jax.jit(step_together, donate_argnums=0, compiler_options=options)

    def compile(self, state: TrainState, keys: jax.Array, count: int) -> jax.stages.Compiled:
        """The training step of `count` runs, for the devices of the mesh."""
        return self.step(count).lower(state, [self.batch()] * count, keys).compile()

    def evaluator(self, count: int) -> Evaluator:
        """Evaluates `count` models at once."""
        train = self.experiment.train
        return Evaluator(
            self.data,
            self.experiment.data_dir,
            train.batch_size,
            sharding=self.sharding,
            rules=self.rules,
            count=count,
            examples=train.evaluate_examples,
        )
