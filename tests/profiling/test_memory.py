"""The course of a program's memory, by hand and against the compiler's own account."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.profiling.hlo import HloModule
from mmjax.profiling.profile.memory import timeline

WIDTH, DEPTH, ROWS = 64, 6, 512
TEXT = """HloModule jit_f, is_scheduled=true, input_output_alias={ {1}: (0, {}, may-alias) }

%add_one (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %r = f32[100]{0} add(%p, %p)
}

ENTRY %main (x: f32[100]) -> (f32[100], f32[100]) {
  %x = f32[100]{0} parameter(0)
  %a = f32[100]{0} fusion(%x), kind=kLoop, calls=%add_one
  %b = f32[200]{0} concatenate(%a, %a), dimensions={0}
  %c = f32[200]{0} fusion(%b), kind=kLoop, calls=%add_one
  %d = f32[100]{0} slice(%c), slice={[0:100]}
  %e = f32[100]{0} fusion(%d), kind=kLoop, calls=%add_one
  ROOT %t = (f32[100]{0}, f32[100]{0}) tuple(%d, %e)
}
"""


def test_by_hand():
    """c lies where b lay, a is gone after b; of the results d counts, and e is written over the argument."""
    found = timeline(HloModule(TEXT))
    assert [size // 4 for size in found.sizes] == [0, 100, 300, 200, 300, 100, 100]
    assert found.peak == 1200
    assert {(instruction.name, size) for instruction, size in found.holders} == {("a", 400), ("b", 800)}


@pytest.mark.parametrize("unroll", [1, DEPTH])
def test_it_is_near_the_compilers_account(unroll):
    def loss(kernels, x):
        y, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels, unroll=unroll)
        return jnp.square(y).sum()

    given = jnp.ones((DEPTH, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH))
    compiled = jax.jit(jax.grad(loss)).lower(*given).compile()
    memory = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert needed > DEPTH * ROWS * WIDTH * 4
    assert timeline(HloModule(compiled.as_text())).peak == pytest.approx(needed, rel=0.15)
