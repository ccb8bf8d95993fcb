"""FLOPs of a model, peak FLOP/s of the machine, and utilisation."""

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

from mmjax.hardware.chips import find_chip

# Names of mesh axes.
Axes = frozenset[str]
# Products in automatic mode, whose types do not show how they are divided among devices.
AUTOMATIC: Axes = frozenset({"automatic"})
MEASURE_SECONDS = 0.25


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Model FLOPs of one call: 2 M N K for each matrix product and convolution its result needs.

    `arguments` may be abstract (`jax.ShapeDtypeStruct`); nothing is compiled or run. The count is for the whole
    (global) arrays. A scanned body counts as often as it runs, a `cond` as its costliest branch. A `while_loop` whose
    number of iterations is only known at run time counts as one, and a kernel in another language (`ffi_call`) as 0.
    Element-wise work, reductions, sorting and Fourier transforms are left out, as usual for model FLOPs. A training
    step counts as three forward passes (Chowdhery et al. 2022, "PaLM", appendix B), without what rematerialisation
    repeats.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def step_flops(model: Any, batch: Any, critics: Any = None) -> int:
    """Model FLOPs of a training step on the batch: three forward passes, also of critics.

    All arguments may be shapes. A critic's scores of true and generated examples count once, in its own loss, because
    the compiler computes them once for both losses.
    """
    flops = count_flops(lambda model, batch: model.loss(batch)[0], model, batch)
    if critics is not None:
        arguments = (model, critics, batch)
        flops += count_flops(lambda model, critics, batch: model.adversarial_loss(critics, batch)[:2], *arguments)
        flops -= count_flops(lambda model, critics, batch: model.adversarial_loss(critics, batch)[0], *arguments)
    return 3 * flops


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """The FLOPs that `count_flops` counts, of an already traced program."""
    return flops_by_axes(jaxpr).total()


def flops_by_axes(jaxpr: Jaxpr) -> Counter[Axes]:
    """The same FLOPs by the mesh axes that divide them; along other axes the work is repeated.

    Work whose partitioning is left to the compiler is under `AUTOMATIC`.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _total_flops(needed)


def _total_flops(jaxpr: Jaxpr) -> Counter[Axes]:
    """FLOPs of everything that was traced, needed or not."""
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
    # jit, custom_jvp_call, custom_vjp_call, checkpoint and others that contain a computation.
    return _sum(_inner_flops(value) for value in parameters.values() if isinstance(value, Jaxpr | ClosedJaxpr))


def _product_flops(equation: JaxprEqn) -> int:
    """FLOPs of a product or a convolution, 0 for others."""
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
    return _total_flops(jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr)


def _sum(counts: Iterable[Counter[Axes]]) -> Counter[Axes]:
    return sum(counts, start=Counter())


def _times(turns: int, flops: Counter[Axes]) -> Counter[Axes]:
    return Counter({axes: turns * count for axes, count in flops.items()})


def _axes(equation: JaxprEqn) -> Axes:
    """The mesh axes over which an equation's arrays are sharded."""
    types: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    shardings = [each.sharding for each in types]
    if any(sharding.mesh.axis_names and sharding.mesh.are_all_axes_auto for sharding in shardings):
        return AUTOMATIC
    return frozenset().union(*(_named(sharding.spec) for sharding in shardings))


def _named(spec: PartitionSpec) -> Axes:
    """All axes of a partition."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec.partitions)
    return frozenset(axis for part in parts for axis in part if isinstance(axis, str))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _ragged_flops(equation: JaxprEqn) -> int:
    """Every row of the left side meets one group's matrix: 2 x left side x right side's own dimensions."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    left, right = _shape(equation.invars[0]), _shape(equation.invars[1])
    shared = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in shared)


def _convolution_flops(equation: JaxprEqn) -> int:
    """2 x outputs x kernel size x input channels of a group.

    Zeros inserted between inputs by a transposed convolution do not count; padding at an edge does.
    """
    parameters = equation.params
    kernel = _shape(equation.invars[1])
    _, inputs_axis, *spatial_axes = parameters["dimension_numbers"].rhs_spec
    products = kernel[inputs_axis] * math.prod(kernel[axis] for axis in spatial_axes)
    return 2 * math.prod(_shape(equation.outvars[0])) * products // math.prod(parameters["lhs_dilation"])


def _shards(parameters: dict[str, Any]) -> tuple[Axes, int]:
    """The axes over which the inputs of a shard_map are sharded, and the number of shards.

    A mesh axis that shards no input repeats the work.
    """
    specs = jax.tree.leaves(parameters["in_specs"], is_leaf=lambda spec: isinstance(spec, PartitionSpec))
    axes = frozenset().union(*map(_named, specs))
    return axes, math.prod(size for axis, size in parameters["mesh"].shape.items() if axis in axes)


@functools.cache
def peak_flops(dtype: Any = jnp.float32) -> tuple[float, str]:
    """Peak FLOP/s of one device of this process, and the source of that figure.

    Known accelerators: the published dense bfloat16 figure, whatever `dtype` is. Others, such as CPUs: the best of
    several matrix products of `dtype` (less than half a second, once per process and before anything else keeps the
    machine busy). Simulated devices of a CPU share the host, so each has its part of it.
    """
    device = jax.local_devices()[0]
    chip = find_chip(device.device_kind)
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
def peak_bandwidth() -> float:
    """Peak memory bandwidth of one device of this process, bytes/s.

    Known accelerators: the published figure. Others, such as CPUs: measured by adding one to a large array.
    """
    device = jax.local_devices()[0]
    chip = find_chip(device.device_kind)
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
    """The seconds of the fastest of several calls, after one untimed call."""
    call()
    best = math.inf
    end = time.perf_counter() + MEASURE_SECONDS
    while (begin := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def utilisation(model_flops_per_step: float | int, seconds_per_step: float, peak: float | None = None) -> float:
    """Model-FLOP utilisation: the share of `peak` FLOP/s (default: of all devices) that steps use."""
    if peak is None:
        peak = peak_flops()[0] * jax.device_count()
    return model_flops_per_step / seconds_per_step / peak
