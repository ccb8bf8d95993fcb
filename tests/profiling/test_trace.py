"""Where time goes: intervals, real traces, and kernels told by what they belong to."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mmjax.layers.attention import Block
from mmjax.layers.linear import contract
from mmjax.layers.stack import Stack
from mmjax.profiling.hlo import HloModule
from mmjax.profiling.profile.profile import kernels, trace, watch_compilations
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

WIDTH, DEPTH, CALLS = 32, 3, 4
RULES = PRESETS["data"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A stack's gradient, compiled, and what it did in four calls."""
    folder = tmp_path_factory.mktemp("trace")
    with jax.set_mesh(MeshShape(data=1).build()):
        stack = Stack(lambda rngs: Block(WIDTH, 2, rules=RULES, rngs=rngs), DEPTH, rngs=nnx.Rngs(0))

        def loss(stack, x):
            with jax.named_scope("encoders/text"):
                return jnp.square(stack(x, None)[0]).sum()

        x = jax.device_put(jnp.ones((4, 8, WIDTH)), RULES.spec("batch", None, None))
        compiled = jax.jit(jax.grad(loss)).lower(stack, x).compile()
        with trace.record(folder):
            for _ in range(CALLS):
                jax.block_until_ready(compiled(stack, x))
    module = HloModule(compiled.as_text())
    return module, trace.read(folder, module.name)


def test_every_instruction_is_found_as_often_as_it_ran(traced):
    module, events = traced
    assert {event.name for event in events} <= module.computation_of.keys()
    dots = [name for name, place in module.computation_of.items() if module.computations[place][name].opcode == "dot"]
    counts = {name: sum(event.name == name for event in events) for name in dots}
    ran = {name: count for name, count in counts.items() if count}
    assert ran
    for name, count in ran.items():
        assert count == CALLS * module.run_counts[module.computation_of[name]], name
    assert all(event.end >= event.begin for event in events)


def test_kernels_are_told_by_part_layer_and_line(traced):
    module, events = traced
    found = kernels(module, events, steps=CALLS, peak=1e9, bandwidth=1e9)
    assert [kernel.seconds for kernel in found] == sorted((kernel.seconds for kernel in found), reverse=True)
    assert sum(kernel.flops for kernel in found) == module.flops
    total = sum(event.end - event.begin for event in events if _leaf(module, event)) / CALLS
    assert sum(kernel.seconds for kernel in found) == pytest.approx(total)
    parts = {kernel.part for kernel in found}
    assert {"encoders/text", "encoders/text backward"} <= parts
    (line,) = [
        number
        for number, text in enumerate(inspect.getsource(contract).splitlines(), inspect.getsourcelines(contract)[1])
        if "jax.lax.dot_general" in text
    ]
    products = [kernel for kernel in found if kernel.flops and kernel.source.startswith("mmjax/layers/linear.py")]
    assert {kernel.source for kernel in products} == {f"mmjax/layers/linear.py:{line}"}
    assert {"Block > MLP > Linear", "Block > Attention > Linear"} <= {kernel.layer for kernel in products}
    for kernel in products:
        limit = max(kernel.flops, kernel.bytes) / 1e9
        assert kernel.roof == pytest.approx(limit / kernel.seconds)


def _leaf(module, event):
    return module.computations[module.computation_of[event.name]][event.name].opcode not in (
        "while",
        "call",
        "conditional",
    )


def test_intervals():
    assert trace.merge([(2.0, 3.0), (0.0, 1.0), (0.5, 2.0)]) == [(0, 3)]
    assert trace.total_length([(0.0, 1.0), (0.5, 2.0), (4.0, 5.0)]) == 3
    assert trace.subtract([(0.0, 4.0)], [(1.0, 2.0), (3.0, 5.0)]) == 2
    assert trace.subtract([], [(1.0, 2.0)]) == 0


def test_what_is_compiled_again_is_named_with_its_reason():
    jax.clear_caches()  # where they are full of other tests' programs, an old one is compiled again
    double = jax.jit(functools.partial(lambda scale, x: scale * x, 2.0))
    double(jnp.ones(3))
    with watch_compilations() as said:
        double(jnp.ones(3))
    assert said == []
    ones = jnp.ones(4)
    with watch_compilations() as said:
        double(ones)
    assert any("f32[4]" in line or "float32[4]" in line for line in said), said
