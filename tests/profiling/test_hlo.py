"""What compiled programs say of themselves, against what was asked of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mmjax.hardware.chips import compiler_options
from mmjax.hardware.flops import count_flops
from mmjax.profiling.groups import device_groups
from mmjax.profiling.hlo import HloModule

DEPTH, ROWS, WIDTH = 5, 64, 32


def stack(x, kernels, unroll=1):
    return jax.lax.scan(lambda x, kernel: (jax.nn.relu(x @ kernel), None), x, kernels, unroll=unroll)[0].sum()


def compiled(function, *arguments, options=None):
    return HloModule(jax.jit(function, compiler_options=options).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("unroll", [1, DEPTH])
def test_a_scanned_layer_counts_as_often_as_it_runs(unroll):
    arguments = jnp.ones((ROWS, WIDTH)), jnp.ones((DEPTH, WIDTH, WIDTH))
    gradients = jax.grad(functools.partial(stack, unroll=unroll), argnums=(0, 1))
    assert (
        compiled(gradients, *arguments).flops
        == 3 * DEPTH * 2 * ROWS * WIDTH * WIDTH
        == 3 * count_flops(stack, *arguments)
    )


def test_a_convolution_counts_what_it_multiplies():
    """Padding is no work: of 3 x 3 taps 2 x 2 meet a picture at its corner."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    taps = (3 * 8 - 2) ** 2
    assert compiled(convolve, x, kernel).flops == 2 * 2 * taps * 3 * 16


def test_what_a_step_leaves_to_libraries_counts_as_if_it_did_not():
    """oneDNN, where JAX is built with it, takes products and convolutions that are gradients, and others."""

    def loss(picture, kernel, matrix):
        convolved = jax.lax.conv_general_dilated(
            picture, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.square(convolved.reshape(64, -1) @ matrix).sum()

    arguments = jnp.ones((64, 16, 16, 32)), jnp.ones((4, 4, 32, 32)), jnp.ones((8 * 8 * 32, 64))
    gradients = jax.grad(loss, argnums=(0, 1, 2))
    told = compiled(gradients, *arguments, options=compiler_options("cpu", cores=2))
    assert told.flops == compiled(gradients, *arguments).flops > 2 * count_flops(loss, *arguments)


def test_calls_of_onednn_as_the_compiler_writes_them():
    module = HloModule(ONEDNN)
    named = module.computations["main"]
    taps = (4 * 8 - 2) ** 2
    assert module.total_flops("main", named["custom-call.3"]) == 2 * 64 * taps * 32 * 32
    assert module.total_flops("main", named["custom-call.4"]) == 2 * 384 * 1536 * 4096
    assert module.flops == 2 * 64 * taps * 32 * 32 + 2 * 384 * 1536 * 4096


def test_written_in_full():
    """Loops, fusions, branches and layouts as a TPU's compiler writes them."""
    module = HloModule(TEXT)
    assert module.partitions == 8
    assert module.run_counts["fused"] == module.run_counts["body"] == 7
    product = 2 * 128 * 256 * 512
    assert module.flops == 7 * product
    loop = module.computations["main"]["while.1"]
    assert module.total_flops("main", loop) == 7 * product
    fusion = module.computations["body"]["fusion.1"]
    assert module.source(fusion) == "mmjax/layers/mlp.py:21"
    assert [shape.on_chip for shape in fusion.shapes] == [True]
    gather, scatter, shift = module.collectives
    assert (gather.kind, gather.count, gather.hidden) == ("all-gather", 7, True)
    assert gather.bytes == 7 * 512 * 256 * 2 * 3 // 4
    assert gather.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (scatter.kind, scatter.count, scatter.hidden) == ("reduce-scatter", 1, False)
    assert scatter.bytes == 1024 * 4 * 1 // 2
    assert scatter.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert (shift.kind, shift.bytes) == ("collective-permute", 64 * 2)


# By JAX 0.12, shortened.
ONEDNN = """HloModule calls

ENTRY %main (x: f32[64,16,16,32], kernel: f32[4,4,32,32], bias: f32[32], a: bf16[4096,384], b: bf16[4096,1536]) -> f32[] {
  %x = f32[64,16,16,32]{3,2,1,0} parameter(0)
  %kernel = f32[4,4,32,32]{3,2,1,0} parameter(1)
  %bias = f32[32]{0} parameter(2)
  %a = bf16[4096,384]{1,0} parameter(3)
  %b = bf16[4096,1536]{1,0} parameter(4)
  %custom-call.3 = (f32[64,8,8,32]{3,2,1,0}, u8[12336]{0}) custom-call(%x, %kernel, %bias), custom_call_target="__onednn$convolution", metadata={op_name="jit(step)/add" stack_frame_id=75}, backend_config={"onednn_conv_config":{"dims":"4","feature_groups":"1","fusions":{"alpha":[],"ops":["BIAS"]},"input":{"data":{"batch_dim":"0","feature_dim":"3","spatial_dims":["1","2"]},"dims":"0"},"kernel":{"dims":"0","filter":{"input_feature_dim":"2","output_feature_dim":"3","shape":["4","4","32","32"],"spatial_dims":["0","1"]}},"output":{"data":{"batch_dim":"0","feature_dim":"3","spatial_dims":["1","2"]},"dims":"0"},"window":{"pad_left":["1","1"],"pad_right":["1","1"],"size":[],"strides":["2","2"],"window_dilations":["1","1"]}},"outer_dimension_partitions":[]}
  %custom-call.4 = (bf16[384,1536]{1,0}, u8[99840]{0}) custom-call(%a, %b), custom_call_target="__onednn$matmul", metadata={op_name="jit(step)/transpose" stack_frame_id=393}, backend_config={"onednn_matmul_config":{"optimization_config":{"bias_broadcast":false,"user_scratchpad":true},"transpose_a":true,"transpose_b":false},"outer_dimension_partitions":[]}
  ROOT %end = f32[] constant(0)
}
"""  # noqa: E501


TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[128,512]{1,0})->bf16[]}, \
num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p: bf16[128,512], q: bf16[512,256]) -> bf16[128,256] {
  %p = bf16[128,512]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[128,256]{1,0:T(8,128)(2,1)} convolution(%p, %q), dim_labels=bf_io->bf
}

%body (t: (s32[], bf16[128,512])) -> (s32[], bf16[128,512]) {
  %t = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[128,512]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %all-gather-start.1 = (bf16[128,256]{1,0}, bf16[512,256]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  %all-gather-done.1 = bf16[512,256]{1,0} all-gather-done(%all-gather-start.1)
  %fusion.1 = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %all-gather-done.1), kind=kOutput, calls=%fused, \
metadata={op_name="jit(step)/dot_general" source_file="mmjax/layers/mlp.py" source_line=21}
  %n = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) tuple(%n, %x)
}

%condition (t: (s32[], bf16[128,512])) -> pred[] {
  %t = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %yes = pred[]{:T(512)} constant(true)
}

%all-reduce-scatter.1 (p: f32[1024]) -> f32[512] {
  %p = f32[1024]{0:T(1024)} parameter(0)
  %all-reduce.1 = f32[1024]{0:T(1024)} all-reduce(%p), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = f32[512]{0:T(512)} dynamic-slice(%all-reduce.1, %zero), dynamic_slice_sizes={512}
}

ENTRY %main (x: bf16[128,512], g: f32[1024]) -> bf16[] {
  %x = bf16[128,512]{1,0:T(8,128)(2,1)} parameter(0)
  %g = f32[1024]{0:T(1024)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.2 = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) tuple(%zero, %x)
  %while.1 = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) while(%tuple.2), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %fusion.2 = f32[512]{0:T(512)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %shift = bf16[64]{0} collective-permute(%x), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %end = bf16[]{:T(256)} constant(0)
}
"""


GATHER = """%all-gather.9 = bf16[512,256]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="0"}"""
PARTS = f"""%begin (p: bf16[128,256]) -> bf16[512,256] {{
  %p = bf16[128,256]{{1,0}} parameter(0)
  {GATHER}
  ROOT %start = bf16[512,256]{{1,0}} custom-call(%all-gather.9), custom_call_target="AsyncCollectiveStart"
}}

%beside (p: bf16[128,512], q: bf16[512,256]) -> bf16[128,256] {{
  %p = bf16[128,512]{{1,0}} parameter(0)
  %q = bf16[512,256]{{1,0}} parameter(1)
  {GATHER}
  ROOT %convolution.1 = bf16[128,256]{{1,0}} convolution(%p, %q), dim_labels=bf_io->bf
}}

%finish (p: bf16[512,256]) -> bf16[512,256] {{
  %p = bf16[512,256]{{1,0}} parameter(0)
  {GATHER}
  ROOT %done = bf16[512,256]{{1,0}} custom-call(%all-gather.9), custom_call_target="AsyncCollectiveDone"
}}

%body ("""
# The gather of TEXT taken apart: it begins, goes on while a product is computed, and is waited for.
CHAINED = (
    TEXT.replace("%body (", PARTS)
    .replace("calls=%fused", "calls=%beside")
    .replace("fusion(%x, %all-gather-done.1)", "fusion(%x, %x)")
    .replace("all-gather-start(%x), ", "fusion(%x), kind=kCustom, calls=%begin, ")
    .replace("  %all-gather-done.1 = bf16[512,256]{1,0} all-gather-done(%all-gather-start.1)\n", "")
    .replace("  %n = s32", "  %last = bf16[512,256]{1,0} fusion(%x), kind=kCustom, calls=%finish\n  %n = s32")
)


def test_a_collective_that_is_taken_apart_counts_once():
    whole, apart = HloModule(TEXT).collectives[0], HloModule(CHAINED).collectives[0]
    assert (apart.kind, apart.bytes, apart.count, apart.hidden) == (whole.kind, whole.bytes, whole.count, True)
    assert len(HloModule(CHAINED).collectives) == len(HloModule(TEXT).collectives)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_collectives_are_those_that_were_asked_for(shape):
    """A sum over examples that lie on both axes of a mesh, and a gather over one."""
    with jax.set_mesh(jax.make_mesh(shape, ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)):
        x = jax.ShapeDtypeStruct(
            (64, 32), jnp.float32, sharding=jax.NamedSharding(jax.sharding.get_mesh(), P(("data", "tensor")))
        )
        module = compiled(lambda x: jax.sharding.reshard(x * 2, P("data", None)) + x.sum(), x)
    kinds = {each.kind: each for each in module.collectives}
    size = shape[1]
    total = kinds["all-reduce"]
    assert sorted(np.concatenate(total.groups).tolist()) == list(range(8))
    assert total.count == 1
    assert total.bytes == 2 * 4 * 7 // 8  # one float32, on a ring of 8 there and back
    if size > 1:
        gather = kinds["all-gather"]
        assert gather.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert gather.bytes == 32 * 32 * 4 * (size - 1) // size
    else:
        assert set(kinds) == {"all-reduce"}


def test_no_program():
    with pytest.raises(ValueError, match="it has no ENTRY"):
        HloModule("nothing")


def test_groups_of_a_mesh_that_the_compiler_names():
    """Four by four devices, numbered along the last axis first: a group's devices differ along one of the two."""
    text = "channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'%s'}, x={1}"
    rows = np.arange(16).reshape(4, 4)
    assert device_groups(text % "axis_0", 16).tolist() == rows.tolist()
    assert device_groups(text % "axis_2", 16).tolist() == rows.T.tolist()
    whole = device_groups("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, dimensions={0}", 8)
    assert whole.tolist() == [list(range(8))]


def test_a_loops_condition_tells_how_often_it_runs():
    told = ', backend_config={"known_trip_count":{"n":"7"}}'
    condition = """%n = s32[]{:T(128)} get-tuple-element(%t), index=0
  %end = s32[]{:T(128)} constant(9)
  ROOT %yes = pred[]{:T(512)} compare(%n, %end), direction=LT"""
    assert told in TEXT
    module = HloModule(TEXT.replace(told, "").replace("ROOT %yes = pred[]{:T(512)} constant(true)", condition))
    assert module.run_counts["body"] == 9
    assert module.flops == 9 * 2 * 128 * 256 * 512


def test_a_loop_whose_first_turns_the_compiler_has_taken_out_runs_the_rest():
    told = ', backend_config={"known_trip_count":{"n":"7"}}'
    condition = """%n = s32[]{:T(128)} get-tuple-element(%t), index=0
  %end = s32[]{:T(128)} constant(9)
  ROOT %yes = pred[]{:T(512)} compare(%n, %end), direction=LT"""
    begin = "%zero = s32[]{:T(128)} constant(0)\n  %tuple.2"
    later = """%two = s32[]{:T(128)} constant(2)
  %zero = s32[]{:T(128)} copy(%two)
  %tuple.2"""
    assert told in TEXT
    assert begin in TEXT
    text = TEXT.replace(told, "").replace("ROOT %yes = pred[]{:T(512)} constant(true)", condition)
    assert HloModule(text.replace(begin, later)).run_counts["body"] == 7
