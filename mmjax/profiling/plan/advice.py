"""Advice on how to make a step fit in memory, from estimates without compilation."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import get_args

import chz
import jax

from mmjax.config.experiment import Experiment
from mmjax.hardware.chips import Chip
from mmjax.layers.stack import Remat
from mmjax.profiling.plan.cost_model import cost_model
from mmjax.profiling.plan.plan import Plan, residual_bytes, usable_bytes
from mmjax.sharding.mesh import choose_rules
from mmjax.sharding.rules import MESH_AXES, PRESETS
from mmjax.training.train_program import TrainProgram

STATE = ("parameters", "optimizer", "average", "critics")


def advise(experiment: Experiment, found: Plan) -> str:
    """The largest use of memory of a compiled step, and the smallest change that should make it fit.

    The state and the residuals are known. The compiler is assumed to keep the same share of the residuals after the
    change, and other memory, mainly gradients, to be proportional to a device's share of the parameters.
    """
    held = found.hbm_bytes
    fixed = held["batch"] + sum(held[name] for name in STATE)
    temporary = held["peak"] - fixed
    activations = min(held["activations"], temporary)
    else_ = temporary - activations

    def needed(other: Experiment) -> int:
        mesh = other.mesh.build(found.topology.devices())
        with jax.set_mesh(mesh):
            program = TrainProgram(other, other.data, choose_rules(other.rules, mesh))
            state, kept = program.argument_bytes, residual_bytes(program)
        share = state["parameters"] / held["parameters"]
        return round(sum(state.values()) + kept * activations / max(1, held["activations"]) + else_ * share)

    parts = {name: held[name] for name in STATE} | {"activations": activations, "gradients and workspace": else_}
    return _advice(experiment, parts, found.mesh, found.chip, needed)


def advise_estimated(experiment: Experiment, memory: Mapping[str, int], mesh: Mapping[str, int], chip: Chip) -> str:
    """The same for a plan from the estimate alone."""

    def needed(other: Experiment) -> int:
        sizes = other.mesh.resolve(math.prod(mesh.values()))
        return cost_model(other).memory(dict(zip(MESH_AXES, sizes, strict=True)))["peak"]

    parts = {name: size for name, size in memory.items() if name != "peak"}
    return _advice(experiment, parts, mesh, chip, needed)


def _advice(
    experiment: Experiment,
    parts: Mapping[str, int],
    mesh: Mapping[str, int],
    chip: Chip,
    needed: Callable[[Experiment], int],
) -> str:
    most = max(parts, key=lambda name: parts[name])
    told = f"the largest part is the {most}: {parts[most] / 2**30:.2f} GiB"
    shards = math.prod(mesh[axis] for axis in PRESETS[experiment.rules].batch)
    for words, other in _smaller(experiment, mesh, shards):
        estimate = needed(other)
        if estimate <= usable_bytes(chip):
            return f"{told}; {words} would need about {estimate / 2**30:.2f} GiB, by an estimate"
    return (
        f"{told}; neither recomputing all, nor splitting the batch or the parameters further, is enough, by an "
        "estimate: more chips are"
    )


def _smaller(experiment: Experiment, sizes: Mapping[str, int], shards: int) -> Iterator[tuple[str, Experiment]]:
    """Variants with less and less memory, the cheapest change in time first, each on top of the others.

    `shards` is the number of parts of the batch on the mesh, each of which needs an example.
    """
    mesh, words = experiment.mesh, ""
    if sizes["data"] > 1 and "fsdp" in experiment.rules:
        words = "mesh.data=1 mesh.fsdp=-1 "
        experiment = chz.replace(experiment, mesh=chz.replace(mesh, data=1, fsdp=-1))
        yield words.strip(), experiment
    order = get_args(Remat)
    for policy in order[order.index(experiment.model.remat) + 1 :]:
        experiment = chz.replace(experiment, model=chz.replace(experiment.model, remat=policy))
        yield f"{words}model.remat={policy}", experiment
    train = experiment.train
    for parts in (2, 4, 8, 16, 32):
        count = train.accumulate * parts
        if train.batch_size % (count * shards) == 0:
            smaller = chz.replace(experiment, train=chz.replace(train, accumulate=count))
            yield f"{words}model.remat=full train.accumulate={count}", smaller
