"""The cost of a model, and the width at which it equals another's in parameters or FLOPs."""

import bisect
import dataclasses
import functools
import math
from typing import Literal

import chz
import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.device_batches import shapes
from mmjax.errors import UserError
from mmjax.hardware.flops import step_flops
from mmjax.model import Model, Multimodal, build_model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import Feature

RULES = PRESETS["data"]
# Wider than any model that one would match.
WIDEST = 2**16


@dataclasses.dataclass(frozen=True)
class Cost:
    """The parameters of a model, and the model FLOPs of a training step (three forward passes)."""

    parameters: int
    flops: int


def measure(model: Model, features: dict[str, Feature], batch_size: int) -> Cost:
    """The cost of the model with steps of `batch_size` examples; nothing is compiled or initialized.

    It is the same on every mesh, and taken on a mesh of one device whatever mesh is in force. Raises UserError where
    the model cannot be built.
    """
    with jax.set_mesh(_one_device()):
        built = _build(model, features)
        batch = shapes(features, batch_size, NamedSharding(jax.sharding.get_mesh(), RULES.spec("batch")))
        flops = step_flops(built, batch)
    return Cost(parameters=sum(leaf.size for leaf in jax.tree.leaves(built)), flops=flops)


def match_width(
    model: Model,
    features: dict[str, Feature],
    batch_size: int,
    *,
    by: Literal["parameters", "flops"],
    target: float | int,
    tolerance: float = 0.1,
) -> Model:
    """The model with the even width at which its cost `by` is nearest in ratio to `target`.

    Raises UserError where the model cannot be built as it is, or no width comes within the share `tolerance` of the
    target.
    """

    def cost(width: int) -> int:
        return getattr(measure(chz.replace(model, width=width), features, batch_size), by)

    # The entries of an array, and the products that it takes part in, grow with the width's power 0, 1 or 2, so that
    # three costs tell all others. If something grew otherwise, each further look would still come nearer.
    costs = {width: cost(width) for width in (model.width, 2 * model.width, 3 * model.width)}
    step = _step(model, features)
    while new := _around(target, costs, step) - costs.keys():
        costs |= {width: cost(width) for width in sorted(new)}
    width = _nearest(target, costs)[0]
    if abs(costs[width] / target - 1) > tolerance:
        unit = "FLOPs a step" if by == "flops" else by
        raise UserError(
            f"no model.width comes within {tolerance:.0%} of {target:.4g} {unit}: the nearest is model.width={width}"
            f" with {costs[width]:.4g}; match to a model of another size, or give this one another depth"
        )
    return chz.replace(model, width=width)


def _step(model: Model, features: dict[str, Feature]) -> int:
    """The narrowest even width that can be built, of which all others are multiples.

    For what is refused is a width that some number (of heads, of directions) does not divide.
    """
    with jax.set_mesh(_one_device()):
        for step in range(2, 2 * model.width, 2):
            try:
                _build(chz.replace(model, width=step), features)
            except UserError:
                continue
            return step
    return 2 * model.width


def _around(target: float | int, costs: dict[int, int], step: int) -> set[int]:
    """The multiples of `step` around where the parabola through the three nearest costs meets the target."""
    nearest = _nearest(target, costs)[:3]
    parabola = np.polyfit(nearest, [costs[width] for width in nearest], 2)
    counts = range(WIDEST // step)
    above = bisect.bisect_left(counts, target, key=lambda count: float(np.polyval(parabola, count * step)))
    return {max(count, 1) * step for count in (above - 1, above)}


def _nearest(target: float | int, costs: dict[int, int]) -> list[int]:
    """The widths by the distance of their cost's logarithm from the target's."""
    return sorted(costs, key=lambda width: abs(math.log(costs[width] / target)))


def _build(model: Model, features: dict[str, Feature]) -> Multimodal:
    """The model with the shapes of its parameters in their place."""
    build = functools.partial(build_model, model=model, features=features, rules=RULES)
    return jax.eval_shape(build, jax.eval_shape(lambda: jax.random.key(0)))


def _one_device() -> jax.sharding.Mesh:
    return MeshShape(data=1).build(jax.local_devices()[:1])
