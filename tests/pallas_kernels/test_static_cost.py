"""The static meter reads schedules and HLO as the TPU compiler writes them, and refuses what it cannot know."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels.bundles import read_schedule
from pallas_kernels.hlo_bytes import computations, hlo_operations
from pallas_kernels.lightning_attention import lightning_attention_flat
from pallas_kernels.static_cost import static_cost
from tests.helpers.programs import needs_libtpu

# A loop of 6 trips over a grid of 4 (two fill and drain the pipeline) with a region for its first step alone, and in it
# a loop whose trips are not known.
SCHEDULE = """
  0x1   : { %s9 = sadd.s32 1, %s1 }
  0x2 LB: > { %s5 = sadd.s32 1, %s4 ;; %s4 = sphi %s0, %s5 /* iteration index, stage = 0 iter bound = 0 }
  0x3   : > { %p1_p0 = scmp.ne.s32.totalorder %s4, 0 ;; %p9 = scmp.ge.s32.totalorder %s5, 6 /* loop exit test */ }
  0x4   : > { sbr.rel (%p1_p0) target = $region4 } /* Start region 3 */
  0x5   : > { %v1 = vld [vmem:[%s1] sm:$0xff] }
  0x6   : > { %v2 = vld [vmem:[%s1] sm:$0xff] }
  0x7 PF: > { %v3 = vmatmul.bf16.gmra.mxu0 %v2 ;; %v4 = vmatmul.bf16.gmra.mxu0 %v2 } /* Start/End empty region 4 */
  0x8 LB: >> { %v5 = vadd %v3, %v3 }
  0x9   : >> {}
  0xa   : > { sbr.rel (!%p7) target = $region9 }
  0xb   : > { sbr.rel (!%p9) target = $region10 }
  0xc   : { %s7 = smov 0 }
"""


def test_loops_are_weighed_by_their_trips():
    schedule = read_schedule(SCHEDULE.splitlines(), [4], matrix_units=4, rows_per_cycle=1)
    # In the grid's loop: 6 bundles of which two run once in four trips... 32 rows of one unit are more than those.
    assert schedule.matrix_cycles == 4 * 32
    assert schedule.bundles == 2 + 4 * (3 + 2 / 4 + 3) + 4 * 2
    assert schedule.cycles == 2 + 4 * 32 + 4 * 2
    assert schedule.unknown_trips == 1


HLO = """
%fused (p0: f32[64,128], p1: s32[]) -> f32[1,128] {
  %p0 = f32[64,128]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,128]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,128}
}
%body (s: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %s = (s32[], f32[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[64,128]{1,0} get-tuple-element(%s), index=1
  %row = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"7"}
  ROOT %t = (s32[], f32[64,128]{1,0}) tuple(%i, %x)
}
%condition (s: (s32[], f32[64,128])) -> pred[] {
  %s = (s32[], f32[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (a: f32[64,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %chip = f32[64,128]{1,0:S(1)} copy(%a), backend_config={"estimated_cycles":"30"}
  %loop = (s32[], f32[64,128]{1,0}) while(%a), condition=%condition, body=%body
  ROOT %out = f32[64,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_slices_count_as_slices_and_arrays_on_chip_not_at_all():
    operations, unknown = hlo_operations(computations(HLO))
    found = {op.name: (op.times, op.estimated_cycles, op.hbm_bytes) for op in operations}
    assert not unknown
    assert found["row"] == (5, 35, 5 * (2 * 4 * 128 + 4))  # a row read, a row written, an index
    assert found["chip"] == (1, 30, 4 * 64 * 128)


def doubled(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] * 2

    block = pl.BlockSpec((256, 128), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, grid=(8,), in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype)
    )(x)


def misshapen(x):
    return x @ jnp.ones((3, 3), x.dtype)


@needs_libtpu
def test_a_kernel_that_only_copies_is_bound_by_its_bytes():
    cost = static_cost(f"{__name__}:doubled", {"x": ((2048, 128), "float32")}, "v6e")
    (kernel,) = cost.kernels
    assert kernel.hbm_bytes == cost.hbm_bytes == 2 * 4 * 2048 * 128
    assert 32 * 8 <= kernel.cycles <= 4 * 32 * 8  # a block is 32 tiles, one is stored per bundle
    assert kernel.bound_cycles == int(cost.hbm_bytes / (1.64e12 / 1.75e9)) > kernel.cycles
    assert kernel.vmem_bytes >= 4 * 4 * 256 * 128 and not cost.unknown_trips


@needs_libtpu
def test_compilation_errors_are_reported():
    with pytest.raises(RuntimeError, match=r"misshapen does not compile for v5p: .*dot_general"):
        static_cost(f"{__name__}:misshapen", {"x": ((4, 4), "float32")}, "v5p")


def test_an_unknown_chip_is_refused():
    with pytest.raises(ValueError, match="chip is 'v4'; it is one of v5e, v5p, v6e, v7x"):
        static_cost("module:function", {}, "v4")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "v7x"])
@pytest.mark.parametrize("function", ["forward", "forward_backward"])
def test_long_rows_compile_in_the_vmem_of_short_ones(chip, function):
    from benchmarks.lightning import flat_cost

    long, short = (flat_cost(function, chip, "plain", length, 16) for length in (131072, 8192))
    assert long.vmem_bytes == short.vmem_bytes


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 4, 9])
def test_any_number_of_packed_rows_compiles(batch):
    array, state = ((batch, 389, 2 * 128), "bfloat16"), ((batch, 2, 128, 128), "float32")
    arguments = dict(q=array, k=array, v=array, log_decay=((2,), "float32"), d_out=array)
    arguments |= dict(segment_ids=((batch, 389), "int32"), initial_state=state)
    assert len(static_cost(f"{__name__}:packed_with_state", arguments, "v5p").kernels) == 2


def packed_with_state(q, k, v, log_decay, d_out, segment_ids, initial_state):
    def attend(q, k, v, initial_state):
        return lightning_attention_flat(
            q, k, v, log_decay, num_heads=2, initial_state=initial_state, segment_ids=segment_ids, backend="tpu"
        )[0]

    return jax.vjp(attend, q, k, v, initial_state)[1](d_out)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("slots", "tokens"), [(3, 1), (500, 1), (10, 3)])
def test_any_number_of_slots_decodes_in_place(slots, tokens):
    array, states = ((slots, tokens, 8 * 128), "bfloat16"), ((slots, 8, 128, 128), "float32")
    arguments = dict(q=array, k=array, v=array, log_decay=((8,), "float32"), states=states)
    function = "pallas_kernels.lightning_attention:lightning_decode_tpu"
    cost = static_cost(function, arguments, "v5p", {"num_heads": 8}, donated=["states"])
    assert len(cost.kernels) == 1
    assert cost.temp_bytes < 4 * slots * 8 * 128**2, "and the states are not copied"
