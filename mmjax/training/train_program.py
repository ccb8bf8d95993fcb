"""The functions of a training that JAX compiles: initialization, step and evaluation."""

import functools
from collections.abc import Callable
from typing import Any

import chz
import jax
from jax.sharding import Mesh, NamedSharding

from mmjax.checkpoint.initialize import Initialize, check_origin, initialize
from mmjax.checkpoint.pretrained.load import Pretrained, check_pretrained, import_weights, imported_parameters
from mmjax.compilation import jit_once, usable_cores
from mmjax.config.experiment import Experiment
from mmjax.data.batching.packing import Packing
from mmjax.data.device_batches import shapes
from mmjax.data.loader import Data
from mmjax.errors import UserError
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.evaluator import Evaluator
from mmjax.hardware.chips import compiler_options
from mmjax.hardware.flops import step_flops
from mmjax.layers.lora import lora_base_parameters
from mmjax.model import build_critics, build_model
from mmjax.optim.optimizers import Rule
from mmjax.sharding.mesh import count_slices, current_mesh, shard_bytes
from mmjax.sharding.rules import Rules
from mmjax.training.run_dir import RunDir
from mmjax.training.state import TrainState, init_state
from mmjax.training.step import train_step
from mmjax.types import Batch, Metrics
from mmjax.vmap_runs import stack, vmap_runs


class TrainProgram:
    """The jitted functions of a training, shared by the seeds of an experiment.

    They are made for the current mesh. Where its devices are only described, the step can be compiled, but nothing can
    be initialized or evaluated. Where only the mesh's sizes are known, the step can be traced.
    """

    def __init__(self, experiment: Experiment, data: Data, rules: Rules):
        """Raises UserError where the model does not fit the mesh."""
        self.experiment, self.data, self.rules = experiment, data, rules
        self.sharding = NamedSharding(current_mesh(), rules.spec("batch"))
        train, model = experiment.train, experiment.model
        self._build_model = functools.partial(build_model, model=model, features=self.data.features, rules=rules)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        abstract_model = jax.eval_shape(self._build_model, self.key)
        if data.packing is not None:
            size = train.batch_size
            _check_packing(experiment, data, data.packing, size // self.sharding.shard_shape((size,))[0])
        rules_by_path = (*experiment.optimizer.rules, *_freezing_rules(experiment, abstract_model))
        optimizer = chz.replace(experiment.optimizer, rules=rules_by_path)
        self.optimizer = optimizer.build(train.steps, abstract_model)
        self._build_critics = functools.partial(build_critics, model=model, features=self.data.features, rules=rules)
        abstract_critics = jax.eval_shape(self._build_critics, self.key)
        self.critic_optimizer = (
            None if abstract_critics is None else experiment.critic_optimizer.build(train.steps, abstract_critics)
        )
        self._init_state = functools.partial(
            init_state, optimizer=self.optimizer, ema=train.ema is not None, critic_optimizer=self.critic_optimizer
        )
        self.abstract_state = jax.eval_shape(self._init_state, abstract_model, critics=abstract_critics)

    @functools.cached_property
    def init_from_key(self) -> Callable[[jax.Array], TrainState]:
        """Initializes the state before the first step from a random key."""
        return jit_once(lambda key: self._init_state(self._build_model(key), critics=self._build_critics(key)))

    def init_state(self, run: RunDir) -> TrainState:
        """The state of a run before its first step."""
        if not self.experiment.train.origins:
            return self.init_from_key(run.init_key)
        model = jit_once(self._build_model)(run.init_key)
        for origin in self.experiment.train.origins:
            if isinstance(origin, Initialize):
                model = initialize(model, origin, say=run.print)
            else:
                model = import_weights(model, origin, say=run.print)
        init = jit_once(lambda model, key: self._init_state(model, critics=self._build_critics(key)))
        return init(model, run.init_key)

    def check_origins(self) -> None:
        """Raises what `init_state` would where the parameters that a run starts from cannot be loaded."""
        for origin in self.experiment.train.origins:
            if isinstance(origin, Initialize):
                check_origin(self.abstract_state.model, origin)
            else:
                check_pretrained(self.abstract_state.model, origin)

    def batch_shapes(self, size: int | None = None) -> Batch:
        """The shapes of a batch; of `size` examples, if that is given."""
        whole = self.experiment.train.batch_size
        return shapes(self.data.features, size or whole, self.sharding, self.data.packing, whole)

    @functools.cached_property
    def argument_bytes(self) -> dict[str, int]:
        """The bytes of a step's arguments on one device, by kind."""
        state = self.abstract_state
        kinds = {
            "parameters": state.model,
            "optimizer": state.opt_state,
            "average": state.ema,
            "critics": (state.critics, state.critic_opt_state),
            "batch": self.batch_shapes(),
        }
        return {name: shard_bytes(tree) for name, tree in kinds.items()}

    @functools.cached_property
    def model_flops(self) -> int:
        """The FLOPs of the model and its critics in a step of one run."""
        return step_flops(self.abstract_state.model, self.batch_shapes(), self.abstract_state.critics)

    def jit_step(self, count: int = 1) -> Any:
        """The jitted step of `count` runs: (state, a batch of each, their keys); the state is donated."""
        train = self.experiment.train
        step = functools.partial(
            train_step,
            optimizer=self.optimizer,
            critic_optimizer=self.critic_optimizer,
            rules=self.rules,
            accumulate=train.accumulate,
            ema=train.ema,
        )

        def train_step_of_runs(state: TrainState, batches: list[Batch], keys: jax.Array) -> tuple[TrainState, Metrics]:
            return vmap_runs(step, count)(state, stack(batches), keys)

        mesh = current_mesh()
        options = None
        if isinstance(mesh, Mesh):
            cores = usable_cores() // jax.local_device_count()
            devices = list(mesh.devices.flat)
            options = compiler_options(devices[0].device_kind, cores, count_slices(devices))
        return jax.jit(train_step_of_runs, donate_argnums=0, compiler_options=options)

    def compile_step(self, state: TrainState, keys: jax.Array, count: int) -> jax.stages.Compiled:
        """The training step of `count` runs, compiled for the devices of the mesh."""
        return self.jit_step(count).lower(state, [self.batch_shapes()] * count, keys).compile()

    def evaluator(self, count: int) -> Evaluator:
        """Evaluates `count` models at once."""
        train = self.experiment.train
        split = self.data.source.splits[-1]
        place = (self.data, self.experiment.data_dir, split, train.batch_size, self.sharding, self.rules)
        return Evaluator(EvalContext(*place), count=count, examples=train.evaluate_examples)


def _freezing_rules(experiment: Experiment, model: Any) -> list[Rule]:
    """Rules that freeze what has low-rank updates, and what is imported to stay as it is."""
    names = lora_base_parameters(model)
    for origin in experiment.train.origins:
        if isinstance(origin, Pretrained) and origin.freeze:
            names += imported_parameters(model, origin)
    return [Rule(pattern=name, freeze=True) for name in dict.fromkeys(names)]


def _check_packing(experiment: Experiment, data: Data, packing: Packing, devices: int) -> None:
    """Raises UserError where an encoder does not read packed sequences, or `devices` cannot share a packed batch."""
    if packing.parts % devices:
        raise UserError(
            f"the mesh splits a batch into {devices} parts, each with its own packed rows: set data.packing.parts to a "
            f"multiple of {devices}"
        )
    if experiment.train.accumulate > 1:
        raise UserError("train.accumulate cannot split packed rows: set train.accumulate=1 or data.packing=None")
    for name, packed in packing.features.items():
        encoder = experiment.model.encoders.get(name)
        if encoder is None:
            continue
        stride = encoder.packed_stride(data.features[name])
        if stride is None:
            raise UserError(
                f"model.encoders.{name}: {type(encoder).__name__} does not read packed sequences; leave "
                f"data.packing.features.{name} out, or choose another encoder"
            )
        for key, size in (("multiple", packed.multiple), ("length", packed.length)):
            if size % stride:
                raise UserError(
                    f"data.packing.features.{name}.{key}={size} must be a multiple of {stride}, the positions that a "
                    f"token of model.encoders.{name} stands for"
                )
