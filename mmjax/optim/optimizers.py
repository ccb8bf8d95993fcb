"""Optimizers: how gradients become updates, with rules by parameter path.

All of the arithmetic is Optax's. Every optimizer here is `clip -> direction -> weight decay -> learning rate`: the
global norm of the gradients is clipped, the subclass turns gradients into a direction, weight decay w is decoupled
(Loshchilov & Hutter 2019), and

    update = -(learning rate at the step) * (rule's multiplier) * (direction + w * (multiplier) * parameter).
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import chz
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jax.tree_util import tree_map_with_path

from mmjax.errors import UserError
from mmjax.layers.tree import named_leaves, path_name
from mmjax.optim.schedules import Cosine, Schedule

# a, b, c of X <- aX + b(XX')X + c(XX')^2 X (Jordan 2024): singular values end up between about 0.7 and 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@chz.chz
class Rule:
    """Exceptions for parameters whose path name ("encoders/image/blocks/mlp/up/bias") matches `pattern`."""

    pattern: str = chz.field(doc="a whole path name, * for any part of it: encoders/image/*, */bias")
    learning_rate: float = chz.field(default=1.0, doc="multiplier of the learning rate")
    weight_decay: float | None = chz.field(
        default=None, doc="multiplier of the decay; None: 1 for matrices and kernels, else 0"
    )
    freeze: bool = chz.field(default=False, doc="never change these parameters and keep no moments for them")

    @chz.validate
    def _not_negative(self) -> None:
        _check_range(0.0, math.inf, learning_rate=self.learning_rate, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How the rules treat one parameter: its multipliers, and whether it is frozen."""

    learning_rate: float
    weight_decay: float
    freeze: bool


@chz.chz
class Optimizer(abc.ABC):
    """Learning rate, schedule, decoupled weight decay, clipping by global norm, rules by parameter path."""

    learning_rate: float = chz.field(default=1e-3, doc="highest learning rate of the run")
    schedule: Schedule = chz.field(default=Cosine(), doc="the learning rate's course: Cosine, Linear, Rsqrt, Constant")
    weight_decay: float = chz.field(
        default=0.0, doc="times the learning rate; of matrices and kernels unless a rule says more"
    )
    clip: float | None = chz.field(default=1.0, doc="largest global norm of the gradients; None: no clipping")
    rules: tuple[Rule, ...] = chz.field(default=(), doc="exceptions by parameter path; the first that matches counts")

    @chz.validate
    def _not_negative(self) -> None:
        _check_range(0.0, math.inf, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip)

    @abc.abstractmethod
    def direction(self, model: Any) -> optax.GradientTransformation:
        """Gradients -> direction of descent, before weight decay and learning rate."""

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate by step, before the rules' multipliers, in a run of `steps` steps."""
        return self.schedule.build(steps, self.learning_rate)

    def build(self, steps: int, model: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer for a run of `steps` steps; of `model` only paths and shapes are read.

        Its `update` takes the number of the run's `step` by keyword, from which the learning rate follows.

        Raises UserError where a rule matches no parameter.
        """
        treatments = treat(self.rules, model)
        parts = [
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            self.direction(model),
            _decay(self.weight_decay, treatments),
            _scale_by_learning_rate(self.rate(steps)),
            _scale({name: treatment.learning_rate for name, treatment in treatments.items()}),
        ]
        optimizer = optax.chain(*parts)
        if not any(treatment.freeze for treatment in treatments.values()):
            return optimizer
        return optax.partition(
            {"trained": optimizer, "frozen": optax.set_to_zero()},
            lambda tree: _map_named(lambda name, _: "frozen" if treatments[name].freeze else "trained", tree),
        )


@chz.chz
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""

    b1: float = chz.field(default=0.9, doc="decay of the first moment")
    b2: float = chz.field(default=0.999, doc="decay of the second moment")
    eps: float = chz.field(default=1e-8, doc="added to the root of the second moment")

    @chz.validate
    def _moments(self) -> None:
        _check_range(0.0, 1.0, b1=self.b1, b2=self.b2)
        _check_range(0.0, math.inf, eps=self.eps)

    def direction(self, model: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@chz.chz
class Lion(Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023).

    It wants a learning rate 3 to 10 times lower than AdamW and a weight decay as many times higher.
    """

    learning_rate: float = chz.field(default=1e-4, doc="highest learning rate of the run")
    b1: float = chz.field(default=0.9, doc="share of the momentum in the direction")
    b2: float = chz.field(default=0.99, doc="decay of the momentum")

    @chz.validate
    def _moments(self) -> None:
        _check_range(0.0, 1.0, b1=self.b1, b2=self.b2)

    def direction(self, model: Any) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@chz.chz
class Adafactor(Optimizer):
    """Second moments kept as row and column means (Shazeer & Stern 2018), with momentum.

    Updates are not scaled by parameter norms, so learning rates are those of AdamW (Zhai et al. 2022, section 3.4).
    Second moments are factored over a parameter's two largest dimensions; the layer dimension of a stack counts as one.
    """

    decay_rate: float = chz.field(default=0.8, doc="exponent c of the second moment's decay 1 - t^-c")
    momentum: float | None = chz.field(default=0.9, doc="decay of the first moment; None: none is kept")
    clipping_threshold: float | None = chz.field(default=1.0, doc="largest RMS of a parameter's direction")
    min_dim_size_to_factor: int = chz.field(default=128, doc="smaller dimensions are not factored")

    @chz.validate
    def _moments(self) -> None:
        _check_range(0.0, 1.0, decay_rate=self.decay_rate, momentum=self.momentum)
        _check_range(0.0, math.inf, clipping_threshold=self.clipping_threshold)

    def direction(self, model: Any) -> optax.GradientTransformation:
        parts = [
            optax.scale_by_factored_rms(decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor)
        ]
        if self.clipping_threshold is not None:
            parts.append(optax.clip_by_block_rms(self.clipping_threshold))
        if self.momentum is not None:
            parts.append(optax.ema(self.momentum, debias=False))
        return optax.chain(*parts)


@chz.chz
class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for matrices (Jordan 2024), AdamW for other parameters.

    Matrices are the kernels of dense layers and convolutions, experts and routers. One of several input or output
    dimensions is taken as [inputs, outputs], each layer of a stack and each expert by itself. The orthogonal matrix is
    scaled by 0.2 sqrt(max(inputs, outputs)), the RMS of an AdamW direction, so that both share a learning rate (Liu et
    al. 2025, section 2.2).
    """

    momentum: float = chz.field(default=0.95, doc="decay of the momentum (Nesterov's)")
    iterations: int = chz.field(default=5, doc="Newton-Schulz iterations")
    b1: float = chz.field(default=0.9, doc="AdamW's decay of the first moment")
    b2: float = chz.field(default=0.999, doc="AdamW's decay of the second moment")
    eps: float = chz.field(default=1e-8, doc="AdamW's eps")

    @chz.validate
    def _moments(self) -> None:
        _check_range(0.0, 1.0, momentum=self.momentum, b1=self.b1, b2=self.b2)
        _check_range(0.0, math.inf, eps=self.eps)

    @chz.validate
    def _iterations(self) -> None:
        if not 1 <= self.iterations <= 100:
            raise ValueError(f"iterations={self.iterations} must lie between 1 and 100")

    def direction(self, model: Any) -> optax.GradientTransformation:
        matrices = matrix_dimensions(model)
        shapes = {name: leaf.shape for name, leaf in named_leaves(model)}
        rms = {
            name: 0.2 * math.sqrt(max(_size(shapes[name], axes.reduction_axis), _size(shapes[name], axes.output_axis)))
            for name, axes in matrices.items()
        }
        muon = optax.contrib.scale_by_muon(
            ns_coeffs=(NEWTON_SCHULZ,) * self.iterations,  # given for each iteration, they are a loop and not unrolled
            ns_steps=self.iterations,
            beta=self.momentum,
            weight_dimension_numbers=lambda tree: _map_named(lambda name, _: matrices[name], tree),
        )
        return optax.partition(
            {
                "muon": optax.chain(_in_auto_mode(muon), _scale(rms)),
                "adam": optax.scale_by_adam(self.b1, self.b2, self.eps),
            },
            lambda tree: _map_named(lambda name, _: "muon" if name in matrices else "adam", tree),
        )


def _check_range(low: float, high: float, **values: float | int | None) -> None:
    """Raises ValueError, naming the field, for a value outside [low, high) that is not None."""
    for name, value in values.items():
        if value is not None and not low <= value < high:
            wanted = "must not be negative" if math.isinf(high) else f"must lie in [{low:g}, {high:g})"
            raise ValueError(f"{name}={value} {wanted}")


def treat(rules: tuple[Rule, ...], model: Any) -> dict[str, Treatment]:
    """Every parameter's treatment by path name: that of the first rule whose pattern matches the name.

    Raises UserError where a rule's pattern matches no name.
    """
    parameters = _parameters(model)
    names = list(parameters)
    for rule in rules:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            shown = ", ".join(names[:: math.ceil(len(names) / 5)])
            raise UserError(f"optimizer.rules: {rule.pattern!r} matches no parameter; among them are {shown}")
    treatments = {}
    for name in names:
        rule = next((rule for rule in rules if fnmatchcase(name, rule.pattern)), Rule(pattern="*"))
        # What is multiplied with is decayed; what is added (biases, positions), scales (gains, temperatures) or is
        # looked up (tables) is not.
        decay = float(parameters[name][1].get("decay", False)) if rule.weight_decay is None else rule.weight_decay
        treatments[name] = Treatment(rule.learning_rate, decay, rule.freeze)
    return treatments


def matrix_dimensions(model: Any) -> dict[str, optax.contrib.MuonDimensionNumbers]:
    """The input and output dimensions of every parameter that is a matrix.

    Further leading dimensions are those of stacks and experts: as many maps beside each other.
    """
    dimensions = {}
    for name, (rank, metadata) in _parameters(model).items():
        if metadata.get("matrix"):
            inputs, outputs = metadata["matrix"]
            middle = rank - outputs
            axes = tuple(range(middle - inputs, middle)), tuple(range(middle, rank))
            dimensions[name] = optax.contrib.MuonDimensionNumbers(*axes)
    return dimensions


def _parameters(model: Any) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Every parameter's number of dimensions and metadata (see `make_parameter`), by path name."""
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Param))[0]
    return {path_name(path): (leaf.ndim, leaf.get_metadata()) for path, leaf in found}


def _size(shape: tuple[int, ...], axes: Any) -> int:
    return math.prod(shape[axis] for axis in axes)


def _map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(name, leaf, ...)` over the leaves of trees of one structure."""
    return tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def _decay(weight_decay: float, treatments: Mapping[str, Treatment]) -> optax.GradientTransformation:
    """Adds (weight decay x the parameter's multiplier) x parameter to the direction."""

    def add(name: str, direction: jax.Array, parameter: jax.Array) -> jax.Array:
        strength = weight_decay * treatments[name].weight_decay
        return direction + strength * parameter if strength else direction

    return optax.stateless(lambda updates, parameters: _map_named(add, updates, parameters))


def _scale_by_learning_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` at the `step` that `update` is told.

    Optax's counts its own updates, which a skipped step takes back: the schedule would fall behind the run.
    """

    def update(updates: Any, state: Any, parameters: Any = None, *, step: Any, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: jnp.asarray(-rate(step), leaf.dtype) * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _scale(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies every update by its factor."""

    def multiply(name: str, update: jax.Array) -> jax.Array:
        return update if factors[name] == 1 else update * factors[name]

    return optax.stateless(lambda updates, _: _map_named(multiply, updates))


def _spell_out(leaf: jax.Array) -> jax.Array:
    """The same array, sharded by a spec with an entry per dimension.

    A vector made from constants comes out of `init` as P() and out of the first update as P(None), and a step that is
    given the one and returns the other is compiled twice.
    """
    spec = jax.typeof(leaf).sharding.spec
    return jax.sharding.reshard(leaf, PartitionSpec(*spec, *[None] * (leaf.ndim - len(spec))))


def _in_auto_mode(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation, with the compiler choosing the shardings inside its update.

    Newton-Schulz multiplies matrices by their own transposes, which in explicit mode needs output shardings; Optax
    gives none. What comes out is sharded as what went in: updates as gradients, the state as the state.
    """

    def init(parameters: Any) -> Any:
        state = transformation.init(parameters)
        return state if jax.sharding.get_abstract_mesh().empty else jax.tree.map(_spell_out, state)

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, (updates, state))
        return jax.sharding.auto_axes(transformation.update, out_sharding=shardings)(updates, state)

    return optax.GradientTransformation(init, update)


TABLE: dict[str, type[Optimizer]] = {kind.__name__: kind for kind in (AdamW, Lion, Adafactor, Muon)}
