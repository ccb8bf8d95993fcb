"""Cost model of a training on any mesh, from the types of the traced step, without compilation.

In explicit mode the sharding of every value is part of its type, so the trace contains all communication.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import chz
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import check_splits
from mmjax.hardware.chips import Chip
from mmjax.hardware.flops import AUTOMATIC, Axes, flops_by_axes
from mmjax.layers.linear import SMALL
from mmjax.sharding.mesh import abstract_mesh, choose_rules
from mmjax.sharding.rules import MESH_AXES, PRESETS
from mmjax.training.train_program import TrainProgram

Sizes = Mapping[str, int]
# Of peak FLOP/s and of memory's and networks' bandwidth large programs reach about so much.
EFFICIENCY = 0.7


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """An array: its total bytes, its sizes, and the mesh axes of each of its dimensions."""

    bytes: int
    sizes: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(leaf: Any) -> "ArrayLayout":
        """From a shape, or from a type in a traced program."""
        dtype = leaf.dtype
        size = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
        return ArrayLayout(math.prod(leaf.shape) * size, tuple(leaf.shape), _axes(leaf))

    def local_bytes(self, mesh: Sizes) -> float:
        """Bytes per device."""
        return self.bytes / math.prod(mesh[axis] for split in self.axes for axis in split)

    def is_divisible(self, mesh: Sizes) -> bool:
        """Whether the mesh divides its dimensions, or keeps it whole because it is small."""
        return all(
            size % math.prod(mesh[axis] for axis in split) == 0 or (split == ("fsdp",) and self.bytes < SMALL)
            for size, split in zip(self.sizes, self.axes, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective that runs `count` times per step along `axes`; `value` is its result."""

    kind: str
    axes: tuple[str, ...]
    value: ArrayLayout
    count: int

    def sent_bytes(self, mesh: Sizes) -> float:
        """Bytes that a device sends per step, on a ring."""
        size = math.prod(mesh[axis] for axis in self.axes)
        share = (size - 1) / size * self.value.local_bytes(mesh) * self.count
        return 2 * share if self.kind == "all-reduce" else share


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The costs of a step for any mesh.

    `kept_residuals` are the residuals that the forward pass keeps for the backward pass, parameters included, and
    `all_residuals` those it would keep without rematerialisation; `flops` are those of a step by the mesh axes that
    divide them.
    """

    state: Mapping[str, list[ArrayLayout]]
    kept_residuals: list[ArrayLayout]
    all_residuals: list[ArrayLayout]
    collectives: list[Collective]
    parameters: int
    model_flops: int
    flops: Mapping[Axes, int]
    accumulate: int
    batch_size: int

    def is_divisible(self, mesh: Sizes, batch_axes: tuple[str, ...]) -> bool:
        """Whether the mesh divides all parameters and the parts of a batch."""
        shards = math.prod(mesh[axis] for axis in batch_axes)
        return self.batch_size % (shards * self.accumulate) == 0 and all(
            value.is_divisible(mesh) for value in self.state["parameters"]
        )

    @property
    def step_flops(self) -> int:
        return sum(self.flops.values())

    def device_flops(self, mesh: Sizes) -> float:
        """FLOPs per device; along an axis that does not divide the work, all devices repeat it.

        Work partitioned by the compiler, such as the update of matrices, is assumed to be divided as the parameters
        are.
        """
        split = frozenset(axis for value in self.state["parameters"] for axes in value.axes for axis in axes)
        return sum(
            flops / math.prod(mesh[axis] for axis in (split if axes == AUTOMATIC else axes))
            for axes, flops in self.flops.items()
        )

    def activations(self, mesh: Sizes) -> tuple[float, float]:
        """Bytes per device that are kept for the backward pass, and that are recomputed for it."""
        weights = sum(value.local_bytes(mesh) for value in self.state["parameters"])
        kept_residuals, all_residuals = (
            max(0.0, sum(value.local_bytes(mesh) for value in each) - weights)
            for each in (self.kept_residuals, self.all_residuals)
        )
        return kept_residuals, max(0.0, all_residuals - kept_residuals)

    def memory(self, mesh: Sizes) -> dict[str, int]:
        """Bytes per device by their use."""
        found = {name: sum(value.local_bytes(mesh) for value in values) for name, values in self.state.items()}
        weights = sum(value.local_bytes(mesh) for value in self.state["parameters"])
        # Besides its state and what it keeps a step holds the gradients, and one weight and the next, cast, as wholes.
        largest = max(value.bytes for value in self.state["parameters"])
        found |= {"activations": self.activations(mesh)[0], "gradients": weights, "workspace": largest}
        return {name: round(size) for name, size in found.items()} | {"peak": round(sum(found.values()))}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate for a step on a mesh of chips: bytes and seconds of one device."""

    memory: Mapping[str, int]
    compute: float
    hbm: float
    communication: Mapping[str, float]
    seconds: float
    mfu: float


def cost_model(experiment: Experiment) -> CostModel:
    """Traces the experiment's step on a mesh that divides everything."""
    with jax.sharding.use_abstract_mesh(abstract_mesh((1,) * len(MESH_AXES))):
        program = TrainProgram(experiment, experiment.data, PRESETS["fsdp_tensor"])
        state, batch = program.abstract_state, program.batch_shapes()
        traced = jax.make_jaxpr(program.jit_step())(state, [batch], program.key)
        all_residuals = kept_residuals = residuals(program)
        if experiment.model.remat != "none":
            plain = chz.replace(experiment, model=chz.replace(experiment.model, remat="none"))
            all_residuals = residuals(TrainProgram(plain, plain.data, PRESETS["fsdp_tensor"]))
        return CostModel(
            state={
                "parameters": _values(state.model),
                "optimizer": _values(state.opt_state),
                "average": _values(state.ema),
                "critics": _values((state.critics, state.critic_opt_state)),
                "batch": _values(batch),
            },
            kept_residuals=_values(kept_residuals),
            all_residuals=_values(all_residuals),
            collectives=list(_talks(traced.jaxpr, 1)),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(state.model)),
            model_flops=program.model_flops,
            flops=flops_by_axes(traced.jaxpr),
            accumulate=experiment.train.accumulate,
            batch_size=experiment.train.batch_size,
        )


def residuals(program: TrainProgram) -> Any:
    """Shapes that a forward pass keeps for the backward pass, parameters included."""

    def pullback(model: Any, batch: Any, key: Any) -> Any:
        return jax.vjp(lambda model: model.loss(batch, key)[0], model)[1]

    train = program.experiment.train
    batch = program.batch_shapes(train.batch_size // train.accumulate)
    return jax.eval_shape(pullback, program.abstract_state.model, batch, program.key)


def check_mesh(experiment: Experiment, sizes: Sizes) -> None:
    """Raises UserError where the experiment cannot be trained on a mesh of these sizes."""
    mesh, train = abstract_mesh(list(sizes.values())), experiment.train
    rules = choose_rules(experiment.rules, mesh)
    check_splits(train.batch_size // train.accumulate, math.prod(sizes[axis] for axis in rules.batch))
    with jax.sharding.use_abstract_mesh(mesh):
        TrainProgram(experiment, experiment.data, rules)


def estimate(cost_model: CostModel, mesh: Sizes, chip: Chip, fast_group: int) -> Estimate:
    """Memory and time of the step on a mesh of this size.

    `fast_group` consecutive devices share the fast network. Communication of weights is assumed to overlap with
    computation as far as possible, that of activations not at all.
    """
    devices = math.prod(mesh.values())
    compute = cost_model.device_flops(mesh) / (EFFICIENCY * chip.flops)
    memory = cost_model.memory(mesh)
    state = sum(memory[name] for name in cost_model.state)
    kept_residuals, again = cost_model.activations(mesh)
    # All is written and read; what is calculated again is so twice.
    hbm = 2 * (state + kept_residuals + 2 * again) / (EFFICIENCY * chip.hbm)
    communication = {"beside": 0.0, "waited": 0.0}
    for each in cost_model.collectives:
        if all(mesh[axis] == 1 for axis in each.axes):
            continue
        rate = chip.ici if group_extent(each.axes, mesh) <= fast_group else chip.dcn
        communication["waited" if "tensor" in each.axes else "beside"] += each.sent_bytes(mesh) / (EFFICIENCY * rate)
    work = max(compute, hbm)
    seconds = work + max(0.0, communication["beside"] - work) + communication["waited"]
    return Estimate(
        memory, compute, hbm, communication, seconds, cost_model.model_flops / seconds / (devices * chip.flops)
    )


def group_extent(axes: tuple[str, ...], mesh: Sizes) -> int:
    """The number of devices, in the mesh's order, that a group along the axes spans."""
    order = list(MESH_AXES)
    first = min(order.index(axis) for axis in axes if mesh[axis] > 1)
    return math.prod(mesh[axis] for axis in order[first:])


def _values(tree: Any) -> list[ArrayLayout]:
    return [ArrayLayout.of(leaf) for leaf in jax.tree.leaves(tree)]


def _axes(leaf: Any) -> tuple[tuple[str, ...], ...]:
    sharding = getattr(leaf, "sharding", None)
    spec = () if sharding is None else sharding.spec
    found = [() if split is None else (split,) if isinstance(split, str) else tuple(split) for split in spec]
    return tuple(found + [()] * (len(leaf.shape) - len(found)))


def _talks(jaxpr: Jaxpr, times: int) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        yield from _equation_talks(equation, times)
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                if isinstance(each, Jaxpr | ClosedJaxpr):
                    yield from _talks(each.jaxpr if isinstance(each, ClosedJaxpr) else each, inner)


def _equation_talks(equation: JaxprEqn, times: int) -> Iterator[Collective]:
    """Communication implied by the types before and after an operation."""
    before = [ArrayLayout.of(each.aval) for each in equation.invars if hasattr(each.aval, "shape")]
    after = [ArrayLayout.of(each.aval) for each in equation.outvars if hasattr(each.aval, "shape")]
    if not before or not after:
        return
    match equation.primitive.name:
        case "reshard":
            lost = _lost(before[0], after[0])
            if lost:
                yield Collective("all-gather", lost, after[0], times)
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield from _sums(tuple(axis for place in contracted for axis in before[0].axes[place]), after[0], times)
        case "reduce_sum" | "reduce_max":
            yield from _sums(
                tuple(axis for place in equation.params["axes"] for axis in before[0].axes[place]), after[0], times
            )
        case "conv_general_dilated":
            # The gradient of a kernel sums over the examples, which then are the "features" of the left side.
            yield from _sums(_lost(before[0], after[0]), after[0], times)


def _lost(before: ArrayLayout, after: ArrayLayout) -> tuple[str, ...]:
    left = {axis for split in after.axes for axis in split}
    return tuple(axis for split in before.axes for axis in split if axis not in left)


def _sums(axes: tuple[str, ...], result: ArrayLayout, times: int) -> Iterator[Collective]:
    """A sum over devices; for gradients a reduce-scatter, where the parameter is stored sharded."""
    stored = tuple(axis for axis in axes if axis == "fsdp")
    rest = tuple(axis for axis in axes if axis != "fsdp")
    if stored:
        yield Collective("reduce-scatter", stored, result, times)
    if rest:
        yield Collective("all-reduce", rest, _shard(result, stored), times)


def _shard(value: ArrayLayout, axes: tuple[str, ...]) -> ArrayLayout:
    """The value sharded along additional mesh axes."""
    return dataclasses.replace(value, sizes=(*value.sizes, 1), axes=(*value.axes, axes)) if axes else value
