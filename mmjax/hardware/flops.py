"""How much arithmetic a model asks for, how much the machine could do, and the share of it that a run uses."""

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval
from jax.sharding import PartitionSpec

from mmjax.hardware.chips import chip_of

# Names of mesh axes.
Axes = frozenset[str]
# Of products in automatic mode, whose division among devices their types do not tell.
UNTOLD: Axes = frozenset({"automatic"})
MEASURE_SECONDS = 0.25


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Model FLOPs of one call: those of the matrix products and convolutions that its result needs, 2 M N K each.

    `arguments` may be abstract (`jax.ShapeDtypeStruct`); nothing is compiled or run. The count is of the whole (global)
    arrays. A scanned body counts as often as it runs, of a `cond` the costliest branch. A `while_loop` whose number of
    turns only the run knows counts as one turn, and a kernel in another language (`ffi_call`) as nothing.
    Element-wise work, reductions, sorting and Fourier transforms are left out, as is the custom for model FLOPs. A
    training step is taken as three times its forward pass (Chowdhery et al. 2022, "PaLM", appendix B); what
    rematerialisation repeats is not the model's.
    """
    return needed_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def step_flops(model: Any, batch: Any, critics: Any = None) -> int:
    """Model FLOPs of a training step on the batch (all may be shapes): three forward passes' worth, also of critics.

    What a critic says of true and of made examples counts once, in its own loss: the compiler computes it once for both
    players' losses.
    """
    flops = count_flops(lambda model, batch: model.loss(batch)[0], model, batch)
    if critics is not None:
        players = (model, critics, batch)
        flops += count_flops(lambda model, critics, batch: model.adversarial_loss(critics, batch)[:2], *players)
        flops -= count_flops(lambda model, critics, batch: model.adversarial_loss(critics, batch)[0], *players)
    return 3 * flops


def needed_flops(jaxpr: Jaxpr) -> int:
    """The FLOPs that `count_flops` counts, of what was traced already."""
    return divided_flops(jaxpr).total()


def divided_flops(jaxpr: Jaxpr) -> Counter[Axes]:
    """The same FLOPs by the mesh axes among whose devices they are divided; others do the same work again.

    What the compiler is left to divide is `UNTOLD`.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _jaxpr_flops(needed)


def _jaxpr_flops(jaxpr: Jaxpr) -> Counter[Axes]:
    """FLOPs of all that was traced, needed or not."""
    return _sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> Counter[Axes]:
    parameters = equation.params
    match equation.primitive.name:
        case "scan":
            return _times(parameters["length"], _inner_flops(parameters["jaxpr"]))
        case "while":
            return _sum(_inner_flops(parameters[name]) for name in ("cond_jaxpr", "body_jaxpr"))
        case "cond":
            return max((_inner_flops(branch) for branch in parameters["branches"]), key=Counter.total)
        case "shard_map":
            axes, shards = _shards(parameters)
            return Counter({axes: shards * _inner_flops(parameters["jaxpr"]).total()})
        case "pallas_call":
            return _times(math.prod(parameters["grid_mapping"].grid), _inner_flops(parameters["jaxpr"]))
    flops = _product_flops(equation)
    if flops:
        return Counter({_axes(equation): flops})
    # jit, custom_jvp_call, custom_vjp_call, checkpoint and whatever else holds the computation it stands for.
    return _sum(_inner_flops(value) for value in parameters.values() if isinstance(value, Jaxpr | ClosedJaxpr))


def _product_flops(equation: JaxprEqn) -> int:
    """Those of an equation that is a product or a convolution, 0 of others."""
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = _shape(equation.invars[0])
            return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[axis] for axis in contracted)
        case "ragged_dot_general":
            return _ragged_flops(equation)
        case "conv_general_dilated":
            return _convolution_flops(equation)
        case name if name.startswith("dot_product_attention_fwd"):  # cuDNN's
            (examples, rows, heads, head), (_, columns, *_) = (_shape(variable) for variable in equation.invars[:2])
            return 4 * examples * heads * rows * columns * head
    return 0


def _inner_flops(jaxpr: Jaxpr | ClosedJaxpr) -> Counter[Axes]:
    return _jaxpr_flops(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr)


def _sum(counts: Iterable[Counter[Axes]]) -> Counter[Axes]:
    return sum(counts, start=Counter())


def _times(turns: int, flops: Counter[Axes]) -> Counter[Axes]:
    return Counter({axes: turns * count for axes, count in flops.items()})


def _axes(equation: JaxprEqn) -> Axes:
    """The mesh axes on which an equation's arrays are split."""
    types: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    shardings = [each.sharding for each in types]
    if any(sharding.mesh.axis_names and sharding.mesh.are_all_axes_auto for sharding in shardings):
        return UNTOLD
    return frozenset().union(*(_named(sharding.spec) for sharding in shardings))


def _named(spec: PartitionSpec) -> Axes:
    """All axes of a partition."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec.partitions)
    return frozenset(axis for part in parts for axis in part if isinstance(axis, str))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _ragged_flops(equation: JaxprEqn) -> int:
    """Every row of the left side meets the matrix of one group: 2 x left side x the right side's own dimensions."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    left, right = _shape(equation.invars[0]), _shape(equation.invars[1])
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def _convolution_flops(equation: JaxprEqn) -> int:
    """2 x outputs x kernel size x input channels of a group. The zeros that a transposed convolution puts between its
    inputs are no work; those that pad an edge count, as if the picture went on."""
    parameters = equation.params
    kernel = _shape(equation.invars[1])
    _, inputs_axis, *spatial_axes = parameters["dimension_numbers"].rhs_spec
    products = kernel[inputs_axis] * math.prod(kernel[axis] for axis in spatial_axes)
    return 2 * math.prod(_shape(equation.outvars[0])) * products // math.prod(parameters["lhs_dilation"])


def _shards(parameters: dict[str, Any]) -> tuple[Axes, int]:
    """The axes whose devices have different shards of what a shard_map is given, and how many shards there are.

    A mesh axis that splits no input repeats the work.
    """
    specs = jax.tree.leaves(parameters["in_specs"], is_leaf=lambda spec: isinstance(spec, PartitionSpec))
    axes = frozenset().union(*map(_named, specs))
    return axes, math.prod(size for axis, size in parameters["mesh"].shape.items() if axis in axes)


@functools.cache
def peak_flops(dtype: Any = jnp.float32) -> tuple[float, str]:
    """FLOP/s that one device of this process could do at best, and where that figure comes from.

    Known accelerators: the published dense bfloat16 figure, whatever `dtype` is. Others, the CPU among them: the best
    of several matrix products of `dtype` (less than half a second, once in a process and before anything else keeps the
    machine busy). Simulated devices of a CPU share the host, so each has its part of what the host can do.
    """
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    if chip is not None:
        return chip.flops, f"published for {device.device_kind}, bfloat16"
    cpu = device.platform == "cpu"
    measured = _measure(device, dtype, size=1024 if cpu else 8192)
    share = jax.local_device_count() if cpu else 1
    return measured / share, f"measured on {device.device_kind}, {jnp.dtype(dtype).name}"


def _measure(device: jax.Device, dtype: Any, size: int) -> float:
    """The best FLOP/s of matrix products of size x size on `device`."""
    # A mesh of its own, because the mesh in force may be of other devices.
    with jax.set_mesh(jax.sharding.Mesh([device], ("measured",))):
        matrix = jnp.full((size, size), 1 / size, dtype)
        multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
        best = _quickest(lambda: multiply(matrix, matrix).block_until_ready())
    return 2 * size**3 / best


@functools.cache
def peak_bytes() -> float:
    """Bytes a second that one device of this process reads and writes at best, in its memory.

    Known accelerators: the published figure. Others, the CPU among them: measured by adding one to a large array.
    """
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    if chip is not None:
        return chip.hbm
    size = 2**26
    with jax.set_mesh(jax.sharding.Mesh([device], ("measured",))):
        array = jnp.zeros((size,), jnp.float32)
        add = jax.jit(lambda array: array + 1).lower(array).compile()
        best = _quickest(lambda: add(array).block_until_ready())
    share = jax.local_device_count() if device.platform == "cpu" else 1
    return 2 * array.nbytes / best / share


def _quickest(call: Callable[[], Any]) -> float:
    """The seconds of the quickest of several calls, after one that is not timed."""
    call()
    best = math.inf
    end = time.perf_counter() + MEASURE_SECONDS
    while (begin := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def utilisation(model_flops_per_step: float | int, seconds_per_step: float, peak: float | None = None) -> float:
    """Model-FLOP utilisation: the share of `peak` FLOP/s (if None, of all devices together) that a run's steps use."""
    if peak is None:
        peak = peak_flops()[0] * jax.device_count()
    return model_flops_per_step / seconds_per_step / peak
