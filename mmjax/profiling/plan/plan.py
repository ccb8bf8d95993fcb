"""Plans of a training on described devices, from the step compiled for them."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.config.experiment import Experiment
from mmjax.data.device_batches import check_splits
from mmjax.errors import UserError
from mmjax.hardware.chips import GPUS, Chip
from mmjax.hardware.flops import jaxpr_flops
from mmjax.profiling.hlo import Collective, HloModule
from mmjax.profiling.plan.cost_model import CostModel, estimate, group_extent, residuals
from mmjax.profiling.plan.devices import MeasuredRates, chip_of_topology, local_chip
from mmjax.profiling.plan.roofline import KINDS, Roofline, RooflineSimulator, Route
from mmjax.sharding.mesh import choose_rules, count_slices, shard_bytes
from mmjax.sharding.topology import HERE, Topology
from mmjax.training.train_program import TrainProgram

# GPUs that NVLink holds together.
NODE = 8
# Of the memory of a TPU the runtime keeps a part for itself: libtpu gives programs 15.75 GiB of a v5e's 16. Of a GPU's
# JAX takes three quarters, if XLA_PYTHON_CLIENT_MEM_FRACTION says nothing else.
USABLE, USABLE_GPU = 15.75 / 16, 0.75


@dataclasses.dataclass(frozen=True)
class Network:
    """The routes of collectives between devices, and their speed."""

    mesh: Mesh
    topology: Topology
    chip: Chip

    @functools.cached_property
    def _devices(self) -> list[Any]:
        """The devices in the order in which a program counts them."""
        return list(self.mesh.devices.flat)

    def axes(self, group: Sequence[int]) -> tuple[str, ...]:
        """The mesh axes along which devices of a group differ."""
        places = np.stack(np.unravel_index(np.asarray(group), self.mesh.devices.shape))
        return tuple(name for name, row in zip(self.mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1)

    def crosses(self, group: Sequence[int]) -> bool:
        """Whether a group spans several slices."""
        return count_slices(self._devices[place] for place in group) > 1

    def route(self, group: Sequence[int]) -> Route:
        """The route of a collective among a group of devices.

        Along each dimension of a slice that the group spans, a device sends in both directions if the group is all of
        it and it is a ring, otherwise in one. The dimensions are used one after the other, each as its own ring.
        """
        if self.crosses(group):
            return Route(self.chip.dcn, len(group) - 1, "dcn")
        if self.topology.generation == HERE:
            return Route(self.chip.ici, len(group) - 1, "ici")
        coordinates = np.array([self._devices[place].coords for place in group])
        along = [len(set(column.tolist())) for column in coordinates.T]
        ways = [
            2 if along[dimension] == size and self.topology.is_ring(dimension) else 1
            for dimension, size in enumerate(self.topology.shape)
            if along[dimension] > 1
        ]
        link = self.chip.ici / self.chip.links
        return Route(link * max(1, sum(ways)), max(1, sum(places - 1 for places in along)), "ici")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory, time and communication of a step on a mesh, per device unless stated otherwise.

    A step that the compiler refuses, because its temporaries alone are too large, has no `collectives` and no
    `roofline`.
    """

    name: str
    topology: Topology
    chip: Chip
    mesh: Mapping[str, int]
    devices: int
    parameters: int
    hbm_bytes: Mapping[str, int]
    model_flops: int
    step_flops: int
    hardware_flops: int | None
    collectives: Sequence[Mapping[str, Any]]
    roofline: Roofline | None
    examples: int
    tokens: int

    @property
    def fits(self) -> bool:
        return self.hbm_bytes["peak"] <= usable_bytes(self.chip)

    def json(self) -> dict[str, Any]:
        """The content of plan.json."""
        course: dict[str, Any] = {}
        if self.roofline is not None:
            seconds = self.roofline.seconds
            course = {
                "roofline_seconds": {kind: getattr(self.roofline, kind) for kind in KINDS},
                "source_seconds": dict(sorted(self.roofline.parts.items(), key=lambda item: -item[1])),
                "predicted_step_seconds": seconds,
                "predicted_mfu": self.model_flops / seconds / (self.chip.flops * self.devices),
                "predicted_examples_per_second": self.examples / seconds,
                "predicted_tokens_per_second": self.tokens / seconds,
            }
        return {
            "experiment": self.name,
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "devices": self.devices,
            "mesh": dict(self.mesh),
            "parameters": self.parameters,
            "fits": self.fits,
            "hbm_bytes": dict(self.hbm_bytes),
            "hbm_limit_bytes": round(usable_bytes(self.chip)),
            "model_flops": self.model_flops,
            "step_flops": self.step_flops,
            "hardware_flops": self.hardware_flops,
            "collectives": list(self.collectives),
        } | course


def plan(experiment: Experiment, topology: Topology, rates: MeasuredRates | None = None) -> Plan:
    """Compiles the experiment's training step for the topology and analyses it.

    `rates` are the measured rates of the devices here. Nothing is read from disk or computed. Raises UserError where
    the mesh does not fit the topology, or the model does not fit the mesh.
    """
    devices = topology.devices()
    chip = local_chip(experiment, rates) if topology.generation == HERE else chip_of_topology(topology, len(devices))
    used = math.prod(experiment.mesh.resolve(len(devices)))
    if used < len(devices) and topology.generation != HERE:
        raise UserError(
            f"{experiment.mesh.text} uses {used} of the {len(devices)} devices of {topology.name}; choose sizes whose "
            "product is that, or -1 for one of them"
        )
    mesh = experiment.mesh.build(devices)
    rules, train = choose_rules(experiment.rules, mesh), experiment.train
    check_splits(train.batch_size // train.accumulate, math.prod(mesh.shape[axis] for axis in rules.batch))
    with jax.set_mesh(mesh):
        program = TrainProgram(experiment, experiment.data, rules)
        batches = [program.batch_shapes()]
        step = program.jit_step()
        # Scalars and keys are replicated, as in a run; otherwise the program would differ from the run's.
        whole = NamedSharding(mesh, PartitionSpec())
        state, key = jax.tree.map(
            lambda leaf: leaf if leaf.shape else jax.ShapeDtypeStruct((), leaf.dtype, sharding=whole),
            (program.abstract_state, program.key),
        )
        traced = step.trace(state, batches, key)
        step_flops = jaxpr_flops(traced.jaxpr.jaxpr)
        lowered = traced.lower(lowering_platforms=(devices[0].platform,))
        compiled, temporaries = _compile(lowered)
        kept, tokens, model_flops = residual_bytes(program), _tokens(program), program.model_flops
    network = Network(mesh, topology, chip)
    module = None if compiled is None else HloModule(compiled.as_text() or "")
    return Plan(
        name=experiment.name,
        topology=topology,
        chip=chip,
        mesh=dict(mesh.shape),
        devices=mesh.size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.model)),
        hbm_bytes=_memory(compiled, program, temporaries) | {"activations": kept},
        model_flops=model_flops,
        step_flops=step_flops,
        hardware_flops=None if module is None else module.flops * mesh.size,
        collectives=[] if module is None else [_described(each, network) for each in module.collectives],
        roofline=None if module is None else RooflineSimulator(module, chip, network.route).run(),
        examples=experiment.train.batch_size,
        tokens=experiment.train.batch_size * tokens,
    )


def estimated_plan(experiment: Experiment, costs: CostModel, sizes: Mapping[str, int], chip: Chip) -> dict[str, Any]:
    """A plan from the estimate alone, as in plan.json, for chips without a compiler here."""
    found = estimate(costs, sizes, chip, NODE)
    devices = math.prod(sizes.values())
    totals: dict[tuple[str, str], list[Any]] = {}
    for talk in costs.collectives:
        axes = [axis for axis in talk.axes if sizes[axis] > 1]
        if axes:
            total = totals.setdefault((talk.kind, "+".join(axes)), [0.0, 0, talk])
            total[0] += talk.sent_bytes(sizes)
            total[1] += talk.count
    collectives = [
        {
            "kind": kind,
            "axis": axis,
            "devices": math.prod(sizes[each] for each in talk.axes),
            "bytes": round(sent),
            "count": count,
            "overlaps": "tensor" not in talk.axes,
            "crosses_slices": group_extent(talk.axes, sizes) > NODE,
            "path": "",
        }
        for (kind, axis), (sent, count, talk) in totals.items()
    ]
    return {
        "experiment": experiment.name,
        "analytic": True,
        "topology": f"{chip.name}:{devices}",
        "chips": devices,
        "devices": devices,
        "mesh": dict(sizes),
        "parameters": costs.parameters,
        "fits": found.memory["peak"] <= usable_bytes(chip),
        "hbm_bytes": dict(found.memory),
        "hbm_limit_bytes": round(usable_bytes(chip)),
        "model_flops": costs.model_flops,
        "step_flops": costs.step_flops,
        "hardware_flops": round(devices * costs.device_flops(sizes)),
        "collectives": sorted(collectives, key=lambda each: -each["bytes"]),
        "roofline_seconds": {"compute": found.compute, "memory": found.hbm, **found.communication},
        "source_seconds": {},
        "predicted_step_seconds": found.seconds,
        "predicted_mfu": found.mfu,
        "predicted_examples_per_second": experiment.train.batch_size / found.seconds,
    }


def usable_bytes(chip: Chip) -> float:
    """The bytes of a chip's memory that a program can use."""
    return (USABLE_GPU if chip in GPUS else USABLE) * chip.hbm_bytes


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, int]:
    """The program, and the bytes of its temporaries; None where these alone do not fit."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"temporaries \(([\d.]+)([KMG])\)", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or found is None:
            raise
        return None, round(float(found.group(1)) * 2 ** {"K": 10, "M": 20, "G": 30}[found.group(2)])
    memory: Any = compiled.memory_analysis()
    return compiled, memory.temp_size_in_bytes


def _memory(compiled: jax.stages.Compiled | None, program: TrainProgram, temporaries: int) -> dict[str, int]:
    """Bytes per device as the compiler reports them, arguments by what they belong to."""
    found = program.argument_bytes
    found |= {"arguments": sum(found.values()), "outputs": 0, "temporaries": temporaries, "code": 0}
    if compiled is not None:
        memory: Any = compiled.memory_analysis()
        found["arguments"] = memory.argument_size_in_bytes
        # The new state takes the place of the old one.
        found["outputs"] = memory.output_size_in_bytes - memory.alias_size_in_bytes
        found["code"] = memory.generated_code_size_in_bytes
    return found | {"peak": sum(found[name] for name in ("arguments", "outputs", "temporaries", "code"))}


def residual_bytes(program: TrainProgram) -> int:
    """Bytes per device of the residuals, without parameters and batch."""
    return max(0, shard_bytes(residuals(program)) - shard_bytes(program.abstract_state.model))


def _described(collective: Collective, network: Network) -> dict[str, Any]:
    group = collective.groups[0].tolist()
    return {
        "kind": collective.kind,
        "axis": "+".join(network.axes(group)),
        "devices": len(group),
        "bytes": collective.bytes,
        "count": collective.count,
        "overlaps": collective.hidden,
        "crosses_slices": network.crosses(group),
        "path": collective.path,
    }


def _tokens(program: TrainProgram) -> int:
    """Tokens per example, of all modalities."""

    def values(model: Any, batch: Any) -> list[Any]:
        return [tokens.values for tokens in model.encode(batch, None)[0].values()]

    return sum(array.shape[1] for array in jax.eval_shape(values, program.abstract_state.model, program.batch_shapes()))
