"""A function in terms of fewer JAX primitives, those that jax2onnx converts."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

# Primitives that call a function once, with the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "closed_call": "call_jaxpr"} | dict.fromkeys(
    ("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"
)


def simplify(function: Callable[..., list[Array]], *types: jax.ShapeDtypeStruct) -> Callable[..., list[Array]]:
    """The function without the primitives in `RULES` and without calls.

    It is traced once, for arrays of these types.
    """
    traced = jax.make_jaxpr(function)(*types)
    return jaxpr_as_fun(jax.make_jaxpr(_function(traced))(*types))


def _function(traced: ClosedJaxpr) -> Callable[..., list[Any]]:
    return lambda *arguments: _evaluate(traced, *arguments)


def _evaluate(traced: ClosedJaxpr, *arguments: Any) -> list[Any]:
    jaxpr = traced.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*traced.consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        found = _apply(equation.primitive, equation.params, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(primitive: Any, params: dict[str, Any], values: list[Any]) -> list[Any]:
    name = primitive.name
    if name in RULES:
        return RULES[name](*values, **params)
    if name in CALLS:
        called = params[CALLS[name]]
        return _evaluate(called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), *values)
    if name in LOOPS:
        return LOOPS[name](values, params)
    found = primitive.bind(*values, **params)
    return found if primitive.multiple_results else [found]


def _pad(x: Array, value: Array, *, padding_config: Any) -> list[Array]:
    if any(interior or low < 0 or high < 0 for low, high, interior in padding_config):
        return [lax.pad(x, value, padding_config)]
    for axis, sizes in enumerate(padding_config):
        low, high = (lax.broadcast(value, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes[:2])
        parts = [low, x, high]
        x = lax.concatenate([part for part in parts if part is x or part.shape[axis]], axis)
    return [x]


def _stack(*arrays: Array, axis: int, **_: Any) -> list[Array]:
    return [lax.concatenate([lax.expand_dims(array, (axis,)) for array in arrays], axis)]


def _unstack(x: Array, *, axis: int, **_: Any) -> list[Array]:
    return [lax.index_in_dim(x, index, axis, keepdims=False) for index in range(x.shape[axis])]


def _scan(values: list[Any], params: dict[str, Any]) -> list[Any]:
    """The steps of a loop one after another.

    With JAX 0.12, jax2onnx 0.13 does not convert the loop itself.
    """
    if "ft_in" in params:  # since JAX 0.11
        first, carried = (len(part) for part in params["ft_in"].unpack()[:2])
    else:
        first, carried = params["num_consts"], params["num_carry"]
    body, length = _function(params["jaxpr"]), params["length"]
    carry, arrays = values[first : first + carried], values[first + carried :]
    rows: list[Any] = [None] * length
    for step in reversed(range(length)) if params["reverse"] else range(length):
        row = [lax.index_in_dim(array, step, keepdims=False) for array in arrays]
        found = body(*values[:first], *carry, *row)
        carry, rows[step] = found[:carried], found[carried:]
    return [*carry, *(_stack(*column, axis=0)[0] for column in zip(*rows, strict=True))]


def _while(values: list[Any], params: dict[str, Any]) -> list[Any]:
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body = _function(params["cond_jaxpr"]), _function(params["body_jaxpr"])
    return lax.while_loop(
        lambda carry: condition(*values[:first], *carry)[0],
        lambda carry: body(*values[first:last], *carry),
        values[last:],
    )


def _cond(values: list[Any], params: dict[str, Any]) -> list[Any]:
    return lax.switch(values[0], [_function(branch) for branch in params["branches"]], *values[1:])


RULES: dict[str, Callable[..., list[Array]]] = {"pad": _pad, "stack": _stack, "unstack": _unstack}
LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
