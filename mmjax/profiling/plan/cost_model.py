"""What a training would need and take on any mesh, estimated from its types: nothing is compiled, and no device asked.

In explicit mode the sharding of every value is part of its type, so that the traced step tells all communication.
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
from mmjax.hardware.flops import UNTOLD, Axes, divided_flops
from mmjax.layers.linear import SMALL
from mmjax.sharding.mesh import choose_rules, sized
from mmjax.sharding.rules import MESH_AXES, PRESETS
from mmjax.training.program import Program

Sizes = Mapping[str, int]
# Of peak FLOP/s and of memory's and networks' bandwidth large programs reach about so much.
EFFICIENCY = 0.7


@dataclasses.dataclass(frozen=True)
class Value:
    """An array: its bytes as a whole, its sizes, and on which mesh axes each of its dimensions lies."""

    bytes: int
    sizes: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(leaf: Any) -> "Value":
        """That of a shape, or of a type in a traced program."""
        dtype = leaf.dtype
        size = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
        return Value(math.prod(leaf.shape) * size, tuple(leaf.shape), _axes(leaf))

    def local(self, mesh: Sizes) -> float:
        """Bytes that a device has of it."""
        return self.bytes / math.prod(mesh[axis] for split in self.axes for axis in split)

    def divided(self, mesh: Sizes) -> bool:
        """Whether the mesh divides its dimensions, or leaves it whole where it is only stored split, as it is small."""
        return all(
            size % math.prod(mesh[axis] for axis in split) == 0 or (split == ("fsdp",) and self.bytes < SMALL)
            for size, split in zip(self.sizes, self.axes, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of `count` times a step among devices that differ along `axes`; `value` is what comes of it."""

    kind: str
    axes: tuple[str, ...]
    value: Value
    count: int

    def sent(self, mesh: Sizes) -> float:
        """Bytes that a device sends in a step, on a ring."""
        size = math.prod(mesh[axis] for axis in self.axes)
        share = (size - 1) / size * self.value.local(mesh) * self.count
        return 2 * share if self.kind == "all-reduce" else share


@dataclasses.dataclass(frozen=True)
class CostModel:
    """A step as its types tell it, on a mesh of no particular size.

    `kept` is what the forward pass keeps for the backward pass, parameters among it, and `made` what it would keep if
    nothing were calculated again; `flops` are those of a step by the mesh axes that divide them.
    """

    state: Mapping[str, list[Value]]
    kept: list[Value]
    made: list[Value]
    talks: list[Collective]
    parameters: int
    model_flops: int
    flops: Mapping[Axes, int]
    accumulate: int
    batch_size: int

    def divided(self, mesh: Sizes, batch_axes: tuple[str, ...]) -> bool:
        """Whether the mesh divides all parameters, and the parts that a batch is worked through in."""
        shards = math.prod(mesh[axis] for axis in batch_axes)
        return self.batch_size % (shards * self.accumulate) == 0 and all(
            value.divided(mesh) for value in self.state["parameters"]
        )

    @property
    def step_flops(self) -> int:
        return sum(self.flops.values())

    def device_flops(self, mesh: Sizes) -> float:
        """FLOPs of a device: what an axis does not divide all of its devices do.

        What the compiler divides, the update of matrices, is taken to be divided as the parameters are.
        """
        split = frozenset(axis for value in self.state["parameters"] for axes in value.axes for axis in axes)
        return sum(
            flops / math.prod(mesh[axis] for axis in (split if axes == UNTOLD else axes))
            for axes, flops in self.flops.items()
        )

    def activations(self, mesh: Sizes) -> tuple[float, float]:
        """Bytes of a device that are kept for the backward pass, and that are calculated again for it."""
        weights = sum(value.local(mesh) for value in self.state["parameters"])
        kept, made = (max(0.0, sum(value.local(mesh) for value in each) - weights) for each in (self.kept, self.made))
        return kept, max(0.0, made - kept)

    def memory(self, mesh: Sizes) -> dict[str, int]:
        """Bytes of a device by what they are of."""
        found = {name: sum(value.local(mesh) for value in values) for name, values in self.state.items()}
        weights = sum(value.local(mesh) for value in self.state["parameters"])
        # Besides its state and what it keeps a step holds the gradients, and one weight and the next, cast, as wholes.
        largest = max(value.bytes for value in self.state["parameters"])
        found |= {"activations": self.activations(mesh)[0], "gradients": weights, "workspace": largest}
        return {name: round(size) for name, size in found.items()} | {"peak": round(sum(found.values()))}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A step on a mesh of chips, by the estimate: bytes and seconds of one device."""

    memory: Mapping[str, int]
    compute: float
    hbm: float
    talk: Mapping[str, float]
    seconds: float
    mfu: float


def cost_model(experiment: Experiment) -> CostModel:
    """Trace the experiment's step, on a mesh that divides everything."""
    with jax.sharding.use_abstract_mesh(sized((1,) * len(MESH_AXES))):
        program = Program(experiment, experiment.data, PRESETS["fsdp_tensor"])
        state, batch = program.abstract, program.batch()
        traced = jax.make_jaxpr(program.step())(state, [batch], program.key)
        made = kept = residuals(program)
        if experiment.model.remat != "none":
            plain = chz.replace(experiment, model=chz.replace(experiment.model, remat="none"))
            made = residuals(Program(plain, plain.data, PRESETS["fsdp_tensor"]))
        return CostModel(
            state={
                "parameters": _values(state.model),
                "optimizer": _values(state.opt_state),
                "average": _values(state.ema),
                "critics": _values((state.critics, state.critic_opt_state)),
                "batch": _values(batch),
            },
            kept=_values(kept),
            made=_values(made),
            talks=list(_talks(traced.jaxpr, 1)),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(state.model)),
            model_flops=program.model_flops,
            flops=divided_flops(traced.jaxpr),
            accumulate=experiment.train.accumulate,
            batch_size=experiment.train.batch_size,
        )


def residuals(program: Program) -> Any:
    """Shapes of what a forward pass keeps for the backward pass, the parameters among it."""

    def pullback(model: Any, batch: Any, key: Any) -> Any:
        return jax.vjp(lambda model: model.loss(batch, key)[0], model)[1]

    train = program.experiment.train
    batch = program.batch(train.batch_size // train.accumulate)
    return jax.eval_shape(pullback, program.abstract.model, batch, program.key)


def check_mesh(experiment: Experiment, sizes: Sizes) -> None:
    """Raise UserError where a mesh of these sizes cannot train the experiment."""
    mesh, train = sized(list(sizes.values())), experiment.train
    rules = choose_rules(experiment.rules, mesh)
    check_splits(train.batch_size // train.accumulate, math.prod(sizes[axis] for axis in rules.batch))
    with jax.sharding.use_abstract_mesh(mesh):
        Program(experiment, experiment.data, rules)


def estimate(cost_model: CostModel, mesh: Sizes, chip: Chip, near: int) -> Estimate:
    """What the step takes on so large a mesh; `near` devices that follow each other share the fast network.

    The weights' way is taken to be beside computing, up to what that takes, that of activations is not.
    """
    devices = math.prod(mesh.values())
    compute = cost_model.device_flops(mesh) / (EFFICIENCY * chip.flops)
    memory = cost_model.memory(mesh)
    state = sum(memory[name] for name in cost_model.state)
    kept, again = cost_model.activations(mesh)
    # All is written and read; what is calculated again is so twice.
    hbm = 2 * (state + kept + 2 * again) / (EFFICIENCY * chip.hbm)
    talk = {"beside": 0.0, "waited": 0.0}
    for each in cost_model.talks:
        if all(mesh[axis] == 1 for axis in each.axes):
            continue
        rate = chip.ici if extent(each.axes, mesh) <= near else chip.dcn
        talk["waited" if "tensor" in each.axes else "beside"] += each.sent(mesh) / (EFFICIENCY * rate)
    work = max(compute, hbm)
    seconds = work + max(0.0, talk["beside"] - work) + talk["waited"]
    return Estimate(memory, compute, hbm, talk, seconds, cost_model.model_flops / seconds / (devices * chip.flops))


def extent(axes: tuple[str, ...], mesh: Sizes) -> int:
    """Over how many devices in the mesh's order a group along the axes reaches."""
    order = list(MESH_AXES)
    first = min(order.index(axis) for axis in axes if mesh[axis] > 1)
    return math.prod(mesh[axis] for axis in order[first:])


def _values(tree: Any) -> list[Value]:
    return [Value.of(leaf) for leaf in jax.tree.leaves(tree)]


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
    """Communication that the types before and after an operation ask for."""
    before = [Value.of(each.aval) for each in equation.invars if hasattr(each.aval, "shape")]
    after = [Value.of(each.aval) for each in equation.outvars if hasattr(each.aval, "shape")]
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


def _lost(before: Value, after: Value) -> tuple[str, ...]:
    left = {axis for split in after.axes for axis in split}
    return tuple(axis for split in before.axes for axis in split if axis not in left)


def _sums(axes: tuple[str, ...], result: Value, times: int) -> Iterator[Collective]:
    """A sum over devices. One of gradients ends where the parameter is stored: each device keeps its part of it."""
    stored = tuple(axis for axis in axes if axis == "fsdp")
    rest = tuple(axis for axis in axes if axis != "fsdp")
    if stored:
        yield Collective("reduce-scatter", stored, result, times)
    if rest:
        yield Collective("all-reduce", rest, _shard(result, stored), times)


def _shard(value: Value, axes: tuple[str, ...]) -> Value:
    """The value as it lies split along more mesh axes."""
    return dataclasses.replace(value, sizes=(*value.sizes, 1), axes=(*value.axes, axes)) if axes else value
